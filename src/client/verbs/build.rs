//! `kiln build` and `kiln retry`.

use serde_json::{json, value::RawValue};
use uuid::Uuid;

use super::Session;
use crate::{
    client::{
        args::{Build, Retry},
        error::{ClientError, Exit},
        follow::What,
        interrupt::Interrupts,
        request::Request,
        screen::{FAINT, Output, styled},
        upload,
        watch::{Attended, Watch, conclude, read_build},
    },
    domain::project::ProjectName,
};

/// `kiln build`.
pub(in crate::client) async fn build(flags: Build) -> Result<Exit, ClientError> {
    let mut request = Request::read(&flags)?;
    let mut session = Session::open(&flags.common)?;
    let mut interrupts = Interrupts::listen()?;
    if let Some(folder) = request.folder.take() {
        tokio::select! {
            biased;
            _ = interrupts.next() => {
                session.screen.end()?;
                session.screen.say("kiln: interrupted; no build was made")?;
                return Ok(Exit::Interrupted);
            }
            source = upload::send(&mut session, folder) => request.set_source(source?),
        }
    }
    let project = session.settings.project.as_ref().map(ProjectName::as_str);
    let request = request.document(project);
    // Known to this command only: whatever happens to the connection, there is one build.
    let key = format!("kiln-build-{}", Uuid::new_v4());
    let posted = session.api.post_once(&["v1", "builds"], &key, &request);
    let Some(document) = unless_interrupted(posted, &mut interrupts).await? else {
        return not_known(&mut session);
    };
    attend(&mut session, &mut interrupts, document, flags.detach).await
}

/// `kiln retry`.
pub(in crate::client) async fn retry(flags: Retry) -> Result<Exit, ClientError> {
    let mut session = Session::open(&flags.common)?;
    let mut interrupts = Interrupts::listen()?;
    let key = format!("kiln-retry-{}", Uuid::new_v4());
    let id = session.find(&flags.id).await?;
    let segments = ["v1", "builds", &id, "retry"];
    let nothing = json!({});
    let posted = session.api.post_once(&segments, &key, &nothing);
    let Some(document) = unless_interrupted(posted, &mut interrupts).await? else {
        return not_known(&mut session);
    };
    attend(&mut session, &mut interrupts, document, flags.detach).await
}

/// The answer, unless Ctrl-C or SIGTERM comes before it: a service that is away is asked for a while.
async fn unless_interrupted<T>(
    answer: impl Future<Output = Result<T, ClientError>>,
    interrupts: &mut Interrupts,
) -> Result<Option<T>, ClientError> {
    tokio::select! {
        biased;
        answer = answer => answer.map(Some),
        _ = interrupts.next() => Ok(None),
    }
}

fn not_known(session: &mut Session) -> Result<Exit, ClientError> {
    let text = "kiln: interrupted before the service answered; `kiln list` shows whether there is a build";
    session.screen.say(text)?;
    Ok(Exit::Interrupted)
}

/// Follows a build that was just made, unless that isn't wanted.
async fn attend(
    session: &mut Session,
    interrupts: &mut Interrupts,
    document: Box<RawValue>,
    detach: bool,
) -> Result<Exit, ClientError> {
    let build = read_build(&session.api, &document)?;
    let id = build.id.to_string();
    if detach {
        let text = if session.json { document.get().to_owned() } else { id };
        session.screen.print(&format!("{text}\n"))?;
        return Ok(Exit::Success);
    }
    let announced = styled(FAINT, &format!("kiln: build {id} in project {}", build.project));
    session.screen.say(&announced)?;
    let watch = Watch {
        api: &session.api,
        screen: &mut session.screen,
        id,
        what: What::Events,
        after: 0,
        known: true,
        events_as_json: false,
        output: if session.json { Output::Error } else { Output::Out },
    };
    match watch.attend(interrupts).await? {
        Attended::Detached => Ok(Exit::Interrupted),
        Attended::Over(build, document) => {
            let exit = conclude(&mut session.screen, &build)?;
            if session.json {
                session.document(&document)?;
            }
            Ok(exit)
        }
    }
}

//! The command line.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use kiln_agent::wire::push::SpoolStep;
use lexopt::{Arg, Parser, ValueExt as _};

use crate::ship::Pace;

pub(crate) const USAGE: &str = "\
usage: kiln-agent install DIR
       kiln-agent source --plan FILE --report FILE [--log FILE] [SPOOL] [--install DIR]
       kiln-agent run    --plan FILE --report FILE [--log FILE] [SPOOL]
       kiln-agent ship   --spool DIR --url URL --token FILE --steps STEP,… [PACE]
       kiln-agent credential --for URL --username FILE --password FILE get|store|erase
SPOOL: --spool DIR [--spool-limit BYTES] [--spool-patience SECONDS]
PACE:  [--gather MS] [--heartbeat MS] [--retry MS] [--unreached MS] [--give-up MS] [--alone MS]";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Print how to call it.
    Help,
    /// Print the version.
    Version,
    /// Copy the program to where the other containers find it.
    Install { folder: PathBuf },
    /// Carry out one step of a plan.
    Step(Order),
    /// Bring the spool to the service.
    Ship(Shipping),
    /// Answer git, which asks how to log in.
    Credential(Login),
}

/// What git may be told, and about which server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Login {
    /// Scheme and host, as in `https://git.example:8443`.
    pub(crate) server: String,
    /// File that holds the user's name.
    pub(crate) username: PathBuf,
    /// File that holds the password.
    pub(crate) password: PathBuf,
    /// What git wants: `get`, or else to tell how it went.
    pub(crate) verb: String,
}

/// What to bring where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shipping {
    /// Folder of the spool.
    pub(crate) spool: PathBuf,
    /// The attempt's log at the service; ends in `/log`.
    pub(crate) url: String,
    /// File that holds the bearer token.
    pub(crate) token: PathBuf,
    /// The steps, in the order in which they run.
    pub(crate) steps: Vec<SpoolStep>,
    /// When to try, and how long.
    pub(crate) pace: Pace,
}

/// One step of a plan.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// Which step.
    pub(crate) step: Step,
    /// File that holds the plan.
    pub(crate) plan: PathBuf,
    /// File that the report goes to.
    pub(crate) report: PathBuf,
    /// File that the frames are appended to; standard output when there is none.
    pub(crate) log: Option<PathBuf>,
    /// Folder of the spool, which the frames go to as well.
    pub(crate) spool: Option<PathBuf>,
    /// How many bytes of them may wait there.
    pub(crate) spool_limit: u64,
    /// How long the shipper may delete nothing from a full spool until lines are dropped.
    pub(crate) spool_patience: Duration,
    /// Folder to copy the program to first, for the container of the next step.
    pub(crate) install: Option<PathBuf>,
}

/// How many bytes may wait in the spool, unless the command line says so.
const SPOOL_LIMIT: u64 = 1 << 30;

const SPOOL_PATIENCE: Duration = Duration::from_secs(30);

/// Room for several of the longest frames.
const MIN_SPOOL_LIMIT: u64 = 1 << 20;

/// The steps of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Fetch the source.
    Source,
    /// Run the builder.
    Run,
}

/// Reads the command line, the program's name included.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Action, lexopt::Error> {
    let mut parser = Parser::from_iter(args);
    let verb = match parser.next()? {
        Some(Arg::Value(verb)) => verb,
        Some(Arg::Long("help") | Arg::Short('h')) => return Ok(Action::Help),
        Some(Arg::Long("version") | Arg::Short('V')) => return Ok(Action::Version),
        Some(other) => return Err(other.unexpected()),
        None => return Err("expected a verb".into()),
    };
    match verb.to_str() {
        Some("install") => install(&mut parser),
        Some("source") => step(&mut parser, Step::Source),
        Some("run") => step(&mut parser, Step::Run),
        Some("ship") => ship(&mut parser),
        Some("credential") => credential(&mut parser),
        _ => Err(format!("unknown verb {}", verb.display()).into()),
    }
}

fn install(parser: &mut Parser) -> Result<Action, lexopt::Error> {
    let mut folder = None;
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Value(value) if folder.is_none() => folder = Some(PathBuf::from(value)),
            other => return Err(other.unexpected()),
        }
    }
    let folder = folder.ok_or("install needs the folder to install into")?;
    Ok(Action::Install { folder })
}

fn step(parser: &mut Parser, step: Step) -> Result<Action, lexopt::Error> {
    let (mut plan, mut report, mut log, mut spool, mut install) = (None, None, None, None, None);
    let (mut spool_limit, mut spool_patience) = (SPOOL_LIMIT, SPOOL_PATIENCE);
    while let Some(arg) = parser.next()? {
        let slot = match arg {
            Arg::Long("plan") => &mut plan,
            Arg::Long("report") => &mut report,
            Arg::Long("log") => &mut log,
            Arg::Long("spool") => &mut spool,
            Arg::Long("spool-limit") => {
                spool_limit = parser.value()?.parse()?;
                if spool_limit < MIN_SPOOL_LIMIT {
                    return Err(format!("--spool-limit is at least {MIN_SPOOL_LIMIT}").into());
                }
                continue;
            }
            Arg::Long("install") if step == Step::Source => &mut install,
            Arg::Long("spool-patience") => {
                spool_patience = Duration::from_secs(parser.value()?.parse()?);
                continue;
            }
            other => return Err(other.unexpected()),
        };
        *slot = Some(PathBuf::from(parser.value()?));
    }
    Ok(Action::Step(Order {
        step,
        plan: plan.ok_or("expected --plan FILE")?,
        report: report.ok_or("expected --report FILE")?,
        log,
        spool,
        spool_limit,
        spool_patience,
        install,
    }))
}

fn ship(parser: &mut Parser) -> Result<Action, lexopt::Error> {
    let (mut spool, mut url, mut token, mut steps) = (None, None, None, None);
    let mut pace = Pace::default();
    while let Some(arg) = parser.next()? {
        let time = match arg {
            Arg::Long("spool") => {
                spool = Some(PathBuf::from(parser.value()?));
                continue;
            }
            Arg::Long("url") => {
                url = Some(parser.value()?.string()?);
                continue;
            }
            Arg::Long("token") => {
                token = Some(PathBuf::from(parser.value()?));
                continue;
            }
            Arg::Long("steps") => {
                let list = parser.value()?.string()?;
                let parsed: Result<Vec<SpoolStep>, _> = list.split(',').map(str::parse).collect();
                steps = Some(parsed.map_err(|error| error.to_string())?);
                continue;
            }
            Arg::Long("gather") => &mut pace.gather,
            Arg::Long("heartbeat") => &mut pace.heartbeat,
            Arg::Long("retry") => &mut pace.retry,
            Arg::Long("unreached") => &mut pace.unreached,
            Arg::Long("give-up") => &mut pace.give_up,
            Arg::Long("alone") => pace.alone.insert(Duration::ZERO),
            other => return Err(other.unexpected()),
        };
        *time = Duration::from_millis(parser.value()?.parse()?);
    }
    Ok(Action::Ship(Shipping {
        spool: spool.ok_or("expected --spool DIR")?,
        url: url.ok_or("expected --url URL")?,
        token: token.ok_or("expected --token FILE")?,
        steps: steps.ok_or("expected --steps STEP,…")?,
        pace,
    }))
}

fn credential(parser: &mut Parser) -> Result<Action, lexopt::Error> {
    let (mut server, mut username, mut password, mut verb) = (None, None, None, None);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("for") => server = Some(parser.value()?.string()?),
            Arg::Long("username") => username = Some(PathBuf::from(parser.value()?)),
            Arg::Long("password") => password = Some(PathBuf::from(parser.value()?)),
            Arg::Value(value) if verb.is_none() => verb = Some(value.string()?),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Action::Credential(Login {
        server: server.ok_or("expected --for URL")?,
        username: username.ok_or("expected --username FILE")?,
        password: password.ok_or("expected --password FILE")?,
        verb: verb.ok_or("expected get, store or erase")?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Action, String> {
        let args = std::iter::once("kiln-agent").chain(line.split_whitespace());
        parse(args.map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_verbs() {
        assert_eq!(
            parsed("install /x"),
            Ok(Action::Install {
                folder: PathBuf::from("/x")
            })
        );
        assert_eq!(
            parsed("source --plan p --report=r --install /x"),
            Ok(Action::Step(Order {
                step: Step::Source,
                plan: PathBuf::from("p"),
                report: PathBuf::from("r"),
                log: None,
                spool: None,
                spool_limit: SPOOL_LIMIT,
                spool_patience: SPOOL_PATIENCE,
                install: Some(PathBuf::from("/x")),
            }))
        );
        assert_eq!(
            parsed("run --log l --report r --plan p --spool s --spool-limit 1048576 --spool-patience 7"),
            Ok(Action::Step(Order {
                step: Step::Run,
                plan: PathBuf::from("p"),
                report: PathBuf::from("r"),
                log: Some(PathBuf::from("l")),
                spool: Some(PathBuf::from("s")),
                spool_limit: 1 << 20,
                spool_patience: Duration::from_secs(7),
                install: None,
            }))
        );
        assert_eq!(
            parsed("credential --for https://git.example --username u --password p get"),
            Ok(Action::Credential(Login {
                server: "https://git.example".to_owned(),
                username: PathBuf::from("u"),
                password: PathBuf::from("p"),
                verb: "get".to_owned(),
            }))
        );
        assert_eq!(
            parsed("ship --spool s --url http://kiln/log --token t --steps source,build --heartbeat 5"),
            Ok(Action::Ship(Shipping {
                spool: PathBuf::from("s"),
                url: "http://kiln/log".to_owned(),
                token: PathBuf::from("t"),
                steps: vec![SpoolStep::Source, SpoolStep::Build],
                pace: Pace {
                    heartbeat: Duration::from_millis(5),
                    ..Pace::default()
                },
            }))
        );
        assert_eq!(parsed("--help"), Ok(Action::Help));
        assert_eq!(parsed("-V"), Ok(Action::Version));
    }

    #[test]
    fn what_is_missing_or_too_much_is_named() {
        for (line, named) in [
            ("", "verb"),
            ("build", "build"),
            ("install", "folder"),
            ("install a b", "b"),
            ("run --plan p", "--report"),
            ("run --report r", "--plan"),
            ("source --plan p --report r extra", "extra"),
            ("source --plan", "--plan"),
            ("run --plan p --report r --install /x", "--install"),
            ("run --plan p --report r --spool-limit x", "x"),
            ("run --plan p --report r --spool-limit 1000", "1048576"),
            ("ship --spool s --url u --token t", "--steps"),
            (
                "ship --spool s --url u --token t --steps build,deploy",
                "`source` or `build`",
            ),
            ("credential --for x --username u get", "--password"),
            ("credential --for x --username u --password p", "get"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(named), "{line:?}: {error}");
        }
    }
}

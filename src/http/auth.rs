//! Who is calling, and what they may do.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};
use url::form_urlencoded;
use uuid::Uuid;

use super::{
    error::{ApiError, Missing, TokenProblem},
    path::{BuildPath, ProjectPath},
    state::App,
    token::{BearerToken, StreamTicket},
};
use crate::{
    domain::{
        build::Build,
        id::BuildId,
        project::{ProjectName, Scope},
        spec::reader::{Object, Reported},
    },
    store::{self, tickets::Streams},
};

/// The bearer of a valid token.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    token: Uuid,
    project: ProjectName,
    scopes: Vec<Scope>,
}

impl Caller {
    /// The token's id.
    pub(super) const fn token(&self) -> Uuid {
        self.token
    }

    /// The token's own project.
    pub(super) const fn project(&self) -> &ProjectName {
        &self.project
    }

    /// Whether the token allows what `scope` allows within its own project.
    pub(super) fn covers(&self, scope: Scope) -> bool {
        self.scopes.iter().any(|held| held.covers(scope))
    }

    /// Whether the token may act in every project.
    pub(super) fn is_admin(&self) -> bool {
        self.covers(Scope::Admin)
    }

    /// Whether the token may know of a project at all.
    pub(super) fn sees(&self, project: &ProjectName) -> bool {
        self.is_admin() || *project == self.project
    }

    /// Refuses a caller whose token doesn't cover `scope`.
    pub(super) fn require(&self, scope: Scope) -> Result<(), ApiError> {
        if self.covers(scope) {
            Ok(())
        } else {
            Err(ApiError::Forbidden(scope))
        }
    }

    /// Refuses a caller who may not do what `scope` allows in `project`. Another's project isn't there.
    pub(super) fn require_in(&self, project: &ProjectName, scope: Scope) -> Result<(), ApiError> {
        if self.sees(project) {
            self.require(scope)
        } else {
            Err(ApiError::NotFound(Missing::Project))
        }
    }

    /// The build, if the caller may know of it.
    pub(super) async fn build(&self, app: &App, id: BuildId) -> Result<Build, ApiError> {
        match store::builds::get(&app.pool, id).await? {
            Some(build) if self.sees(&build.project) => Ok(build),
            Some(_) => Err(ApiError::NotFound(Missing::Build)),
            None => Err(match store::retention::deleted_build(&app.pool, id).await? {
                Some(deleted) if self.sees(&deleted.project) => ApiError::BuildDeleted(deleted.deleted_at),
                _ => ApiError::NotFound(Missing::Build),
            }),
        }
    }
}

fn bearer(headers: &HeaderMap) -> Result<BearerToken, TokenProblem> {
    let header = headers.get(header::AUTHORIZATION).ok_or(TokenProblem::Missing)?;
    let (scheme, token) = header
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .ok_or(TokenProblem::Malformed)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(TokenProblem::Malformed);
    }
    BearerToken::parse(token.trim()).ok_or(TokenProblem::Malformed)
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let refuse = ApiError::Unauthenticated;
        let sent = bearer(&parts.headers).map_err(refuse)?;
        let token = app
            .intake
            .token(sent.hash())
            .await?
            .ok_or(refuse(TokenProblem::Unknown))?;
        if token.expires_at.is_some_and(|expires_at| expires_at <= app.clock.now()) {
            return Err(refuse(TokenProblem::Expired));
        }
        Ok(Self {
            token: token.id,
            project: token.project,
            scopes: token.scopes,
        })
    }
}

/// A build that the caller may read.
pub(super) struct ReadableBuild(pub(super) Build);

impl FromRequestParts<App> for ReadableBuild {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, app).await?;
        readable(parts, app, &caller).await.map(Self)
    }
}

/// The project named by the path, whose secrets and tokens the caller may manage. Whether there is one isn't known yet.
pub(super) struct ManagedProject(pub(super) ProjectName);

impl FromRequestParts<App> for ManagedProject {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, app).await?;
        let ProjectPath(project) = ProjectPath::from_request_parts(parts, app).await?;
        caller.require_in(&project, Scope::ProjectAdmin)?;
        Ok(Self(project))
    }
}

/// A build whose streams the caller may open: as [`ReadableBuild`], or with a ticket.
pub(super) struct StreamableBuild(pub(super) Build);

impl FromRequestParts<App> for StreamableBuild {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let StreamCaller { caller, ticket } = StreamCaller::from_request_parts(parts, app).await?;
        let build = readable(parts, app, &caller).await?;
        match ticket {
            Some(streams) if streams != Streams::Build(build.id) => Err(ApiError::NotFound(Missing::Build)),
            _ => Ok(Self(build)),
        }
    }
}

async fn readable(parts: &mut Parts, app: &App, caller: &Caller) -> Result<Build, ApiError> {
    caller.require(Scope::BuildsRead)?;
    let BuildPath(id) = BuildPath::from_request_parts(parts, app).await?;
    caller.build(app, id).await
}

/// Marks the parameter `ticket` as known; [`StreamCaller`] reads it.
pub(super) fn ticket(query: &Object<'_>) -> Result<(), Reported> {
    query.field("ticket").text().map(drop)
}

/// Who opens a stream: the bearer of a token, or of a ticket that was made with it.
pub(super) struct StreamCaller {
    /// What the token allows.
    pub(super) caller: Caller,
    /// What the ticket opens, where there is one instead of the token.
    pub(super) ticket: Option<Streams>,
}

impl FromRequestParts<App> for StreamCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let query = parts.uri.query().unwrap_or_default();
        let ticket = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "ticket");
        let Some((_, ticket)) = ticket.filter(|_| !parts.headers.contains_key(header::AUTHORIZATION)) else {
            let caller = Caller::from_request_parts(parts, app).await?;
            return Ok(Self { caller, ticket: None });
        };
        let refused = ApiError::Unauthenticated(TokenProblem::Ticket);
        let Some(ticket) = StreamTicket::parse(&ticket) else {
            return Err(refused);
        };
        let found = store::tickets::by_hash(&app.pool, &ticket.hash(), app.clock.now()).await?;
        let found = found.ok_or(refused)?;
        Ok(Self {
            caller: Caller {
                token: found.token,
                project: found.project,
                scopes: found.scopes,
            },
            ticket: Some(found.streams),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_read_by_its_form() {
        let token = BearerToken::from_random([1; 32]);
        let read = |value: Option<String>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::AUTHORIZATION, value.parse().expect("a header value"));
            }
            bearer(&headers)
        };
        let secret = token.expose();
        assert_eq!(read(None), Err(TokenProblem::Missing));
        assert_eq!(read(Some(format!("Bearer {secret}"))), Ok(token.clone()));
        assert_eq!(read(Some(format!("bearer  {secret}"))), Ok(token.clone()));
        for bad in [
            secret.to_owned(),
            format!("Basic {secret}"),
            "Bearer x".to_owned(),
            "Bearer".to_owned(),
        ] {
            assert_eq!(read(Some(bad)), Err(TokenProblem::Malformed));
        }
    }

    #[test]
    fn only_admins_see_other_projects() {
        let name = |text: &str| text.parse::<ProjectName>().expect("a name");
        let caller = |scope| Caller {
            token: Uuid::nil(),
            project: name("mine"),
            scopes: vec![scope],
        };
        let owner = caller(Scope::ProjectAdmin);
        assert!(owner.require_in(&name("mine"), Scope::BuildsWrite).is_ok());
        assert!(matches!(
            owner.require_in(&name("other"), Scope::BuildsRead),
            Err(ApiError::NotFound(Missing::Project))
        ));
        assert!(
            caller(Scope::Admin)
                .require_in(&name("other"), Scope::ProjectAdmin)
                .is_ok()
        );
        assert!(matches!(
            caller(Scope::BuildsRead).require_in(&name("mine"), Scope::BuildsWrite),
            Err(ApiError::Forbidden(Scope::BuildsWrite))
        ));
    }
}

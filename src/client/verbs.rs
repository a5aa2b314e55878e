//! The commands.

pub(super) mod build;
pub(super) mod builds;
mod find;
pub(super) mod list;
pub(super) mod logs;
pub(super) mod secrets;
pub(super) mod tokens;

use serde_json::value::RawValue;

use super::{
    api::Api,
    args::{BuildName, Common},
    error::ClientError,
    screen::Screen,
    settings::Settings,
};

/// What every command works with.
pub(super) struct Session {
    pub(super) settings: Settings,
    pub(super) api: Api,
    pub(super) screen: Screen,
    /// Whether the answer is wanted as JSON.
    pub(super) json: bool,
}

impl Session {
    pub(super) fn open(common: &Common) -> Result<Self, ClientError> {
        let mut screen = Screen::new(common.output.color);
        let mut warnings = Vec::new();
        let settings = Settings::resolve(&common.connection, |warning| warnings.push(warning))?;
        for warning in warnings {
            screen.say(&format!("kiln: {warning}"))?;
        }
        Ok(Self {
            api: Api::new(&settings)?,
            settings,
            screen,
            json: common.output.json,
        })
    }

    /// Prints a document as it came, on one line.
    pub(super) fn document(&mut self, document: &RawValue) -> Result<(), ClientError> {
        Ok(self.screen.print(&format!("{}\n", document.get()))?)
    }

    /// The id of a build that was named by how it begins, too.
    pub(super) async fn find(&self, name: &BuildName) -> Result<String, ClientError> {
        match name {
            BuildName::Whole(id) => Ok(id.to_string()),
            BuildName::Prefix(prefix) => find::find(&self.api, prefix).await,
        }
    }
}

//! The images of an application with their last pins, for the announcement of parameters.

use std::collections::BTreeMap;

use super::Generator;
use super::error::GenerateError;
use super::prepared::Prepared;
use crate::application::Application;
use crate::failure::Failures;
use crate::pin::PinOverrides;
use crate::render::Purpose;
use crate::resolve::Question;
use crate::workspace::Checkout;

impl Generator<'_> {
    /// The images that an application asks for before it is rendered, by alias or name, with their last pins. Asks no registry.
    ///
    /// # Errors
    ///
    /// As [`super::check`].
    pub async fn list_images(
        &self,
        checkout: &Checkout,
        application: &Application,
    ) -> Result<BTreeMap<String, String>, GenerateError> {
        let mut prepared = Prepared::read(checkout, application, self.tools, Purpose::Inspect).await?;
        let mut failures = std::mem::take(&mut prepared.failures);
        let mut inputs = prepared.inputs();
        failures.append(&mut inputs.failures);
        if !failures.is_empty() {
            return Err(Failures(failures).into());
        }
        let none = PinOverrides::default();
        let overrides = prepared.overrides.as_ref().unwrap_or(&none);
        let mut pins = BTreeMap::new();
        for lookup in inputs.lookups.into_iter().chain(prepared.rule_lookups()) {
            let Question { repository, policy, .. } = &lookup.question;
            let pinned = match overrides.get(lookup.alias.as_deref(), repository, policy) {
                Some(pinned) => Some(pinned.clone()),
                None => self.resolver.last(&lookup.question, &application.project).await,
            };
            let name = lookup.alias.unwrap_or_else(|| repository.text().to_owned());
            if let Some(pinned) = pinned {
                pins.insert(name, pinned.to_string());
            }
        }
        Ok(pins)
    }
}

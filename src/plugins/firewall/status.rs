//! STATUS of `firewall`: whether an ADD could be served. Looks only.

use super::conf::Firewall;
use crate::resource::World;
use crate::spec::Request;

/// The error of code 50 if an ADD could not be served now.
pub(super) fn status(request: &Request, world: &mut World<'_>) -> anyhow::Result<()> {
    let firewall = Firewall::parse(request)?;
    firewall.choose_backend(world)?;
    Ok(())
}

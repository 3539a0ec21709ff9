//! Tools that tenants drive stay inside their sandbox.
//!
//! [`hostile`] puts a program that tries everything in a tool's place; [`escapes`] gives the real tools what led them out once; [`ladder`]
//! runs all as user 999 in a container, once for each level that a kernel may keep; [`random`] looks for what nobody thought of.

mod escapes;
mod hostile;
mod ladder;
mod random;

use pinion::process::sandbox::Level;

/// Variables that choose a level below the kernel's own, for `pinion` and for what is expected of it.
pub const ABI: &str = "PINION_SANDBOX_ABI";
pub const WITHOUT_SECCOMP: &str = "PINION_SANDBOX_WITHOUT_SECCOMP";

/// The level that is tested: this kernel's, or less where a variable says so.
fn level() -> Level {
    let probed = Level::probe();
    let abi = std::env::var(ABI).map_or(probed.landlock, |text| text.parse().expect("a number"));
    Level { landlock: abi.min(probed.landlock), seccomp: probed.seccomp && std::env::var_os(WITHOUT_SECCOMP).is_none() }
}

/// Is the level that of a new kernel? Elsewhere the tests tell what they leave out; in CI nothing is left out.
fn is_whole() -> bool {
    let level = level();
    if level.landlock < 6 || !level.seccomp {
        let is_chosen = std::env::var_os(ABI).is_some() || std::env::var_os(WITHOUT_SECCOMP).is_some();
        assert!(is_chosen || std::env::var_os("CI").is_none(), "this kernel keeps less than CI needs: {level}");
        eprintln!("PARTLY SKIPPED: what this level does not keep ({level})");
        return false;
    }
    true
}

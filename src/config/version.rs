//! The versions this program answers to.
//!
//! Place in the flow: `--version`, `/version`, the User-Agent and the build-info metric. Pure.

use super::value::{InvalidValue, parse_bool};

/// The Kubernetes release whose behaviour this program has.
pub const KUBERNETES_RELEASE: &str = "1.37.0";
/// What `--version` prints after `Kubernetes `: the release, and this program's own version. A build
/// for a release says it in KUBEWEIR_VERSION, whole: `v1.37.0+kubeweir.0.2.0`.
pub const VERSION: &str = match option_env!("KUBEWEIR_VERSION") {
    // An argument of a container build that nobody gave is there and empty.
    Some(version) if !version.is_empty() => version,
    _ => concat!("v1.37.0+kubeweir.", env!("CARGO_PKG_VERSION")),
};
/// Major number of [`KUBERNETES_RELEASE`].
pub const MAJOR: &str = "1";
/// Minor number of [`KUBERNETES_RELEASE`].
pub const MINOR: &str = "37";
/// The only release that `showHiddenMetricsForVersion` may name.
pub const PREVIOUS_MINOR: &str = "1.36";

/// What `--version` was given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum VersionFlag {
    /// Not asked for.
    #[default]
    Off,
    Print,
    /// Print everything known about the build.
    Raw,
    /// Report this version instead of [`VERSION`] during this run.
    Override(String),
}

/// A value of `--version` that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidVersion {
    #[error(transparent)]
    Syntax(#[from] InvalidValue),
    #[error("the version {0:?} must have the major, minor and patch of {KUBERNETES_RELEASE}")]
    OtherRelease(String),
}

/// Reads a value of `--version`.
pub fn parse_flag(text: &str) -> Result<VersionFlag, InvalidVersion> {
    if text == "raw" {
        return Ok(VersionFlag::Raw);
    }
    if let Some(version) = text.strip_prefix('v') {
        let release = version.split(['-', '+']).next().unwrap_or_default();
        return if release == KUBERNETES_RELEASE {
            Ok(VersionFlag::Override(text.to_owned()))
        } else {
            Err(InvalidVersion::OtherRelease(text.to_owned()))
        };
    }
    Ok(if parse_bool(text)? { VersionFlag::Print } else { VersionFlag::Off })
}

impl VersionFlag {
    /// What goes to stdout, if the process is to print and exit.
    pub fn output(&self) -> Option<String> {
        match self {
            VersionFlag::Off | VersionFlag::Override(_) => None,
            VersionFlag::Print => Some(format!("Kubernetes {VERSION}\n")),
            VersionFlag::Raw => Some(format!(
                "version.Info{{Major:{MAJOR:?}, Minor:{MINOR:?}, GitVersion:{VERSION:?}, \
                 Compiler:\"rustc\", Platform:\"linux/{}\"}}\n",
                std::env::consts::ARCH
            )),
        }
    }

    /// The version to report during this run.
    pub fn reported(&self) -> &str {
        match self {
            VersionFlag::Override(version) => version,
            _ => VERSION,
        }
    }
}

impl std::fmt::Display for VersionFlag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            VersionFlag::Off => "false",
            VersionFlag::Print => "true",
            VersionFlag::Raw => "raw",
            VersionFlag::Override(version) => version,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // B-005: the values of --version.
    #[test]
    fn version_flag() {
        let print = parse_flag("true").expect("bool").output().expect("prints");
        assert!(print.starts_with("Kubernetes v1.37."), "{print}");
        assert!(parse_flag("raw").expect("raw").output().expect("prints").contains("GitVersion"));
        assert_eq!(parse_flag("false"), Ok(VersionFlag::Off));
        let named = parse_flag("v1.37.0-cloud.1").expect("same release");
        assert_eq!(named.reported(), "v1.37.0-cloud.1");
        assert_eq!(named.output(), None);
        assert!(matches!(parse_flag("v1.36.0"), Err(InvalidVersion::OtherRelease(_))));
        assert!(matches!(parse_flag("maybe"), Err(InvalidVersion::Syntax(_))));
    }

    #[test]
    fn names_agree() {
        assert!(VERSION.starts_with(&format!("v{KUBERNETES_RELEASE}+")));
        assert!(KUBERNETES_RELEASE.starts_with(&format!("{MAJOR}.{MINOR}.")));
        let minor: u32 = MINOR.parse().expect("number");
        assert_eq!(PREVIOUS_MINOR, format!("{MAJOR}.{}", minor - 1));
    }
}

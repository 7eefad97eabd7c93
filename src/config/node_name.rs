//! The name of this node (section 3.1).
//!
//! Place in the flow: `main` asks once, with the kernel's host name; the API watch, locality and
//! events use the answer. Pure.

/// Why there is no node name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NodeNameError {
    /// `--hostname-override` holds only white space.
    #[error("empty hostname-override is invalid")]
    BlankOverride,
    /// Neither an override nor a host name.
    #[error("empty hostname is invalid")]
    Empty,
}

/// What `--hostname-override` says: trimmed and lower-cased; `None` if it was left empty.
///
/// Errors: only white space (B-019).
pub fn override_from_flag(flag: &str) -> Result<Option<String>, NodeNameError> {
    if flag.is_empty() {
        return Ok(None);
    }
    match normalised(flag) {
        name if name.is_empty() => Err(NodeNameError::BlankOverride),
        name => Ok(Some(name)),
    }
}

/// The effective name: the override, else the kernel's host name, trimmed and lower-cased.
///
/// Errors: nothing is left after trimming.
pub fn node_name(hostname_override: &str, kernel_hostname: &str) -> Result<String, NodeNameError> {
    let source = if hostname_override.is_empty() { kernel_hostname } else { hostname_override };
    match normalised(source) {
        name if name.is_empty() => Err(NodeNameError::Empty),
        name => Ok(name),
    }
}

fn normalised(name: &str) -> String {
    name.trim().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    // B-019: blanks are fatal, everything else is trimmed and lower-cased.
    #[test]
    fn names() {
        assert_eq!(override_from_flag(""), Ok(None));
        assert_eq!(override_from_flag(" \t"), Err(NodeNameError::BlankOverride));
        assert_eq!(override_from_flag(" Node-A "), Ok(Some("node-a".to_owned())));
        assert_eq!(node_name("", "Host\n"), Ok("host".to_owned()));
        assert_eq!(node_name("From-File", "host"), Ok("from-file".to_owned()));
        assert_eq!(node_name("  ", "host"), Err(NodeNameError::Empty));
        assert_eq!(node_name("", ""), Err(NodeNameError::Empty));
    }
}

//! The limit of open files.
//!
//! Owns raising it. The kernel's usual soft limit of 1,024 exists for programs that use `select`; a daemon that reaches
//! it can look at nothing any more. Instances and builds don't inherit the raised limit: their shim sets its own
//! (`bazooka_sandbox::launch`). HAProxy and git do: HAProxy takes its number of connections from the hard limit anyway,
//! and git has no use for more.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises this process's limit of open files to the hard limit. If that fails, the limit stays, with a warning.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(error = %error, "the limit of open files can't be raised; connections may fail when it is reached");
    }
}

/// Returns the number of files that this process may have open; `None` if it can't be asked for.
#[cfg(feature = "endpoint")]
pub(crate) fn most_open_files() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_as_far_as_the_kernel_lets_it() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("it can be asked for");
        setrlimit(Resource::RLIMIT_NOFILE, 64, hard).expect("it can be lowered");
        raise_open_files();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((hard, hard)));
    }
}

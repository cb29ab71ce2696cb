//! The environment of a build: a clean set of variables, with those that package clients need to reach their
//! registries.
//!
//! Owns the choice of variables that pass from bazooka-rm's own environment. An app's config vars never pass.

use std::{collections::BTreeMap, path::Path};

/// The names of variables that pass.
const PASSED: &[&str] = &[
    "LANG",
    "LC_ALL",
    "TZ",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
    "GOPROXY",
    "GOSUMDB",
    "GOPRIVATE",
    "GONOPROXY",
    "GONOSUMDB",
    "GOINSECURE",
    "GIT_SSL_CAINFO",
    "UV_DEFAULT_INDEX",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_HTTP_TIMEOUT",
    "UV_INSECURE_HOST",
    "UV_SYSTEM_CERTS",
    "PIPENV_PYPI_MIRROR",
    "MAVEN_OPTS",
    "MAVEN_ARGS",
    "GRADLE_OPTS",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
];

/// The prefixes of names that pass: settings of the package clients.
const PASSED_BEGINNINGS: &[&str] = &[
    "PIP_",
    "NPM_CONFIG_",
    "npm_config_",
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
    "RUSTUP_",
    "UV_INDEX",
    "POETRY_HTTP_BASIC_",
    "POETRY_REPOSITORIES_",
    "POETRY_CERTIFICATES_",
    "YARN_NPM_",
    "YARN_HTTP",
    "BUNDLE_",
    "COMPOSER_",
];

/// The suffixes of names that pass: where other clients look for certificates.
const PASSED_ENDS: &[&str] = &["_CA_BUNDLE", "_CA_CERTS", "_CA_CERT", "_CA_CERTS_FILE", "_CA_FILE"];

/// The settings of Python's package managers: `.venv` is theirs to fill and not to make, and no keyring, download of an
/// interpreter or moving picture is wanted.
const PYTHON_TOOLS: &[(&str, &str)] = &[
    ("UV_LINK_MODE", "copy"),
    ("UV_NO_PROGRESS", "1"),
    ("UV_PYTHON_DOWNLOADS", "never"),
    ("POETRY_VIRTUALENVS_IN_PROJECT", "true"),
    ("POETRY_KEYRING_ENABLED", "false"),
    ("PIPENV_VENV_IN_PROJECT", "1"),
    ("PIPENV_VERBOSITY", "-1"),
    ("PIPENV_NOSPIN", "1"),
    ("PIPENV_HIDE_EMOJIS", "1"),
];

/// The PATH if bazooka-rm's own environment has none.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Returns the environment of a build's processes.
///
/// `own` is bazooka-rm's own environment, and `cache` the folder of the app's caches. `exists` returns true if a file
/// exists; it is asked for the user's own settings of the package clients.
pub fn environment(
    own: &BTreeMap<String, String>,
    cache: &Path,
    exists: impl Fn(&Path) -> bool,
) -> BTreeMap<String, String> {
    let mut vars: BTreeMap<String, String> = own
        .iter()
        .filter(|(name, _)| passes(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut set = |name: &str, value: String| vars.insert(name.to_owned(), value);
    let below = |name: &str| cache.join(name).display().to_string();
    let home = own.get("HOME").map(Path::new);
    let at_home = |name: &str| home.map(|home| home.join(name)).filter(|path| exists(path));

    let mut path: Vec<String> = own
        .get("PATH")
        .map_or(DEFAULT_PATH, String::as_str)
        .split(':')
        // Shims of version managers choose a version from the user's home, which a build doesn't have.
        .filter(|entry| !entry.is_empty() && !entry.ends_with("/shims"))
        .map(str::to_owned)
        .collect();
    if let Some(cargo) = at_home(".cargo/bin") {
        let cargo = cargo.display().to_string();
        if !path.contains(&cargo) {
            path.push(cargo);
        }
    }
    set("PATH", path.join(":"));
    set("HOME", below("home"));
    set("TMPDIR", below("tmp"));
    set("TERM", "dumb".into());
    for (name, default) in [("LANG", "C.UTF-8"), ("PYTHONUNBUFFERED", "1"), ("GIT_TERMINAL_PROMPT", "0")] {
        if !own.contains_key(name) || name != "LANG" {
            set(name, default.into());
        }
    }
    set("PIP_CACHE_DIR", below("pip"));
    set("PIP_NO_INPUT", "1".into());
    set("PIP_DISABLE_PIP_VERSION_CHECK", "1".into());
    set("UV_CACHE_DIR", below("uv"));
    set("POETRY_CACHE_DIR", below("poetry"));
    set("PIPENV_CACHE_DIR", below("pipenv"));
    for (name, value) in PYTHON_TOOLS {
        set(name, (*value).into());
    }
    set("npm_config_cache", below("npm"));
    for quiet in ["audit", "fund", "update_notifier", "progress"] {
        set(&format!("npm_config_{quiet}"), "false".into());
    }
    set("GOPATH", below("go"));
    set("GOCACHE", below("go-build"));
    // Another version would come from the network, unasked for by the operator.
    set("GOTOOLCHAIN", "local".into());
    // Files that a build can't delete would stay in its cache.
    set("GOFLAGS", "-modcacherw".into());
    set("CARGO_HOME", below("cargo"));
    set("CARGO_TARGET_DIR", below("target"));
    set("CARGO_TERM_COLOR", "never".into());
    if !own.contains_key("RUSTUP_HOME") {
        if let Some(rustup) = at_home(".rustup") {
            set("RUSTUP_HOME", rustup.display().to_string());
        }
    }
    for (name, file) in [
        ("NPM_CONFIG_USERCONFIG", ".npmrc"),
        ("PIP_CONFIG_FILE", ".pip/pip.conf"),
        ("PIP_CONFIG_FILE", ".config/pip/pip.conf"),
    ] {
        if !own.contains_key(name) {
            if let Some(file) = at_home(file) {
                set(name, file.display().to_string());
            }
        }
    }
    vars
}

fn passes(name: &str) -> bool {
    PASSED.contains(&name)
        || PASSED_BEGINNINGS.iter().any(|begin| name.starts_with(begin))
        || PASSED_ENDS.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn only_what_the_clients_need_passes() {
        let own = vars(&[
            ("PATH", "/u/.pyenv/shims:/usr/bin:/bin"),
            ("HOME", "/u"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("BAZOOKA_COORDINATOR", "http://127.0.0.1:1"),
            ("CARGO_MANIFEST_DIR", "/src"),
            ("CARGO_HOME", "/u/.cargo"),
            ("LD_PRELOAD", "/x.so"),
            ("PIP_CERT", "/ca.pem"),
            ("SSL_CERT_FILE", "/ca.pem"),
            ("REQUESTS_CA_BUNDLE", "/ca.pem"),
            ("https_proxy", "http://proxy"),
        ]);
        let here = ["/u/.npmrc", "/u/.cargo/bin", "/u/.rustup"];
        let got = environment(&own, Path::new("/c"), |path| here.iter().any(|h| Path::new(h) == path));
        for (name, wanted) in [
            ("PATH", Some("/usr/bin:/bin:/u/.cargo/bin")),
            ("HOME", Some("/c/home")),
            ("CARGO_HOME", Some("/c/cargo")),
            ("RUSTUP_HOME", Some("/u/.rustup")),
            ("NPM_CONFIG_USERCONFIG", Some("/u/.npmrc")),
            ("PIP_CERT", Some("/ca.pem")),
            ("REQUESTS_CA_BUNDLE", Some("/ca.pem")),
            ("https_proxy", Some("http://proxy")),
            ("PIP_CONFIG_FILE", None),
            ("AWS_SECRET_ACCESS_KEY", None),
            ("BAZOOKA_COORDINATOR", None),
            ("CARGO_MANIFEST_DIR", None),
            ("LD_PRELOAD", None),
        ] {
            assert_eq!(got.get(name).map(String::as_str), wanted, "{name}");
        }
    }
}

//! The configuration, line by line.
//!
//! The golden files are written anew by `BAZOOKA_GOLDEN=write`; the difference is for people to read.

use std::{collections::BTreeSet, path::Path};

use bazooka_proxy::{
    config::{GitTls, RunAs, Settings, hosts, render, render_map, structural_hash},
    routes::routes,
};
use proptest::prelude::*;

use crate::image::{Rows, entry, service, settings};

fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var("BAZOOKA_GOLDEN").is_ok_and(|what| what == "write") {
        std::fs::write(&path, text).expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    // The structural hash among them: another compiler, or another build, must come to the same.
    let lines = |text: &str| -> Vec<String> { text.lines().map(str::to_owned).collect() };
    let differing = lines(text).into_iter().zip(lines(&golden)).find(|(is, was)| is != was);
    assert_eq!(differing, None, "{name} differs; BAZOOKA_GOLDEN=write writes it anew");
    assert_eq!(lines(text).len(), lines(&golden).len(), "{name} differs in length");
}

fn cluster() -> Rows {
    Rows::default()
        .proc("goto-rocket/web", 8511)
        .proc("goto-rocket/job", 8510)
        .proc("goto-rocket/fail", 8509)
        .proc("shop/web", 8512)
        .proc("shop/web-admin", 8513)
        .running(4617216, "goto-rocket/web", "10.0.0.1:21880")
        .running(4617217, "goto-rocket/web", "10.0.0.2:21881")
        .running(4617218, "goto-rocket/job", "10.0.0.1:21882")
        .running(4617219, "shop/web", "[fd00::1]:21000")
        .domain("www.example.org", "shop")
        .domain("nowhere.example.org", "unheard-of")
}

#[test]
fn a_proxy_without_services_says_so_to_everyone() {
    golden("empty.cfg", &render(&routes(&Rows::default().0, None), &settings()));
}

#[test]
fn a_cluster_is_rendered_whole() {
    let routes = routes(&cluster().0, None);
    golden("cluster.cfg", &render(&routes, &settings()));
    golden("cluster.map", &render_map(&hosts(&routes, &settings())));
}

#[test]
fn git_is_led_to_each_rm_that_can_be_reached_so() {
    let mut settings = settings();
    settings.git = Some("10.0.0.1:8081".parse().expect("an address"));
    let rm = |url: &str| serde_json::json!({ "url": url, "version": "1" }).to_string();
    let rows = Rows::default()
        .put("rms/rm1", &rm("http://10.0.0.3:8081"))
        .put("rms/rm2", &rm("http://rm2.example.org:8081/"))
        .put("rms/rm3", &rm("https://10.0.0.5:8081"))
        .put("rms/rm4", &rm("http://10.0.0.6:8081 check\n    bind *:1"));
    let routes = routes(&rows.0, None);
    golden("git.cfg", &render(&routes, &settings));
    // With an identity: the others, and each by its own name.
    settings.git_tls =
        Some(GitTls { identity: "/state/git.pem".into(), authority: "/etc/bazooka/ca.pem".into() });
    golden("git-tls.cfg", &render(&routes, &settings));
}

#[test]
fn ports_that_cannot_be_opened_and_another_user_are_rendered() {
    let mut settings = settings();
    settings.public = None;
    settings.bind = "::1".parse().expect("an address");
    settings.run_as = Some(RunAs { user: "haproxy".into(), group: "haproxy".into() });
    let refused = [service("goto-rocket/web"), service("goto-rocket/fail")];
    let routes = routes(&cluster().0, None).without_ports(&refused);
    golden("refused.cfg", &render(&routes, &settings));
}

#[test]
fn the_structural_hash_changes_with_services_and_ports_alone() {
    let settings = settings();
    let of = |rows: Rows| structural_hash(&routes(&rows.0, None), &settings);
    let before = of(cluster());
    assert_eq!(of(cluster().running(9, "shop/web", "10.0.0.9:1")), before, "an instance");
    assert_eq!(of(cluster().domain("shop.example.org", "shop")), before, "a domain");
    assert_ne!(of(cluster().proc("shop/job", 8514)), before, "a service");
    assert_ne!(of(cluster().proc("shop/web", 8599)), before, "a port");
    let refused = routes(&cluster().0, None).without_ports(&[service("shop/web")]);
    assert_ne!(structural_hash(&refused, &settings), before, "a refused port");
    let text = render(&routes(&cluster().0, None), &settings);
    assert!(text.contains(&format!("\n    description shape={before}\n")));
}

#[test]
fn without_lua_nothing_is_sent_again_that_an_instance_took() {
    let routes = routes(&cluster().0, None);
    let settings = Settings { lua: false, ..settings() };
    let text = render(&routes, &settings);
    assert!(text.contains("\n    retry-on conn-failure\n") && !text.contains("empty-response"), "{text}");
    assert!(!text.contains("lua") && !text.contains("tcp-response"), "{text}");
}

#[test]
fn an_apps_own_name_is_not_another_ones_domain() {
    let rows = Rows::default().proc("a/web", 1).proc("b/web", 2).proc("b/job", 3);
    let rows = rows.domain("a.localhost", "b").domain("www.b.org", "b").domain("www.a.org", "c");
    let hosts = hosts(&routes(&rows.0, None), &settings());
    let expected = [("a.localhost", "a.web"), ("b.localhost", "b.web"), ("www.b.org", "b.web")];
    assert_eq!(hosts, expected.map(|(host, to)| (host.to_owned(), to.to_owned())).into());
}

/// The lines that name a script or its action.
const LOAD: &str = "    lua-load \"/var/lib/bazooka-proxy/give-up-1.lua\"";
const GIVE_UP: &str = "    tcp-response content lua.bazooka_give_up";

/// The first words of every line that may stand in a configuration.
const WORDS: [&str; 31] = [
    "",
    "#",
    "global",
    "description",
    "stats",
    "hard-stop-after",
    "defaults",
    "mode",
    "balance",
    "timeout",
    "option",
    "srvtcpka-cnt",
    "srvtcpka-idle",
    "srvtcpka-intvl",
    "retries",
    "retry-on",
    "http-error",
    "frontend",
    "bind",
    "http-request",
    "use_backend",
    "backend",
    "server",
    "default_backend",
    "tcp-check",
    "user",
    "group",
    "no",
    "log",
    "lua-load",
    "tcp-response",
];

/// What could end a word, a line or a string, or be taken for something else.
fn hostile() -> impl Strategy<Value = String> {
    let bits = [
        "a",
        "web",
        "rocket",
        "\n",
        "\r\n",
        "\0",
        " ",
        "\t",
        "\"",
        "'",
        "\\",
        "#",
        "{",
        "}",
        "%[",
        "]",
        "$HOME",
        "${X}",
        "/",
        "..",
        "-",
        ".",
        ":",
        ",",
        ";",
        "server x 1.2.3.4:80",
        "backend evil",
        "option httpchk",
        "\u{202e}",
        "ä",
        "@",
        "1",
        "\u{1b}[0m",
        "lua-load /tmp/x.lua",
    ];
    prop::collection::vec(prop::sample::select(bits.to_vec()), 0..6).prop_map(|bits| bits.concat())
}

fn hostile_rows() -> impl Strategy<Value = Vec<(String, String)>> {
    let row = (hostile(), hostile(), hostile(), any::<u16>(), any::<u64>()).prop_map(|(a, b, c, port, id)| {
        let text = |text: &str| serde_json::to_string(text).expect("a string is JSON");
        vec![
            (format!("apps/{a}/procs/{b}"), format!("{{\"port\":{port}}}")),
            (format!("apps/a/procs/{b}"), format!("{{\"port\":{port},{}:1}}", text(&c))),
            (format!("domains/{c}"), format!("{{\"app\":{}}}", text(&a))),
            (format!("domains/{a}.{b}"), "{\"app\":\"a\"}".to_owned()),
            (
                format!("assigned/{c}/{id}"),
                format!(
                    "{{\"desired\":\"run\",\"app\":{},\"proc\":{},\"release\":\"v1\",\"rev\":\"{}\",\"env\":\"e0\",\
                     \"slug\":{{\"sha256\":\"{}\",\"size_bytes\":1}},\"command\":{},\"index\":0}}",
                    text(&a),
                    text(&b),
                    "0".repeat(40),
                    "0".repeat(64),
                    text(&c)
                ),
            ),
            (
                format!("status/{c}/{id}"),
                format!(
                    "{{\"state\":\"running\",\"since\":\"2026-01-01T00:00:00Z\",\"ip\":{},\"port\":{port},\"cause\":{}}}",
                    text(&b),
                    text(&c)
                ),
            ),
        ]
    });
    prop::collection::vec(row, 0..6).prop_map(|rows| rows.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_that_is_stored_can_inject_a_line(rows in hostile_rows()) {
        use visor::mirror::Image;
        let mut snapshot = cluster().0;
        let lines_of = |snapshot: &_| render(&routes(snapshot, None), &settings());
        for (key, value) in &rows {
            snapshot.put(&entry(key, value));
        }
        let text = lines_of(&snapshot);
        let words: BTreeSet<&str> = WORDS.into_iter().collect();
        for line in text.lines() {
            let first = line.split_whitespace().next().unwrap_or("");
            prop_assert!(words.contains(first), "{line:?}");
            prop_assert!(line.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{line:?}");
            prop_assert_eq!(line.matches('"').count() % 2, 0, "{:?}", line);
            let lua = line.contains("lua") && ![LOAD, GIVE_UP].contains(&line);
            prop_assert!(!line.contains("evil") && !lua, "{line:?}");
        }
        // Each line is one that the routes account for.
        let routes = routes(&snapshot, None);
        let count = |word: &str| text.lines().filter(|line| line.split_whitespace().next() == Some(word)).count();
        prop_assert_eq!(count("backend"), routes.services.len() + 1);
        prop_assert_eq!(count("server"), routes.servers() + 1);
        let open = routes.services.values().filter(|service| service.port.is_some()).count();
        prop_assert_eq!(count("frontend"), open + 3);
        prop_assert_eq!((count("global"), count("lua-load")), (1, 1));
        for line in render_map(&hosts(&routes, &settings())).lines() {
            prop_assert_eq!(line.split(' ').count(), 2, "{:?}", line);
            prop_assert!(line.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{:?}", line);
        }
    }
}

//! Tests of the table's rules, and that docs/settings.md is made from it.

use std::collections::BTreeSet;

use super::*;

fn web() -> ProcName {
    "web".parse().expect("a name")
}

/// Returns what an option's word stores, as JSON and in words.
fn set(setting: &'static Setting, word: &str) -> Result<(serde_json::Value, String), String> {
    let change = setting.parse(word).map_err(|error| error.to_string())?;
    let mut proc = Proc::new(&web(), 1);
    change.apply(&web(), &mut proc);
    let json = setting.stored(&proc).as_ref().map(serde_json::Value::from);
    Ok((json.unwrap_or_default(), setting.of(&web(), &proc).to_string()))
}

#[test]
fn a_value_is_stored_and_told_as_it_was_given() {
    for (setting, word, json, words) in [
        (&MEMORY, "256M", serde_json::json!(256 << 20), "256M"),
        (&MEMORY, "9000KiB", serde_json::json!(9000 << 10), "8.8M"),
        (&CPU, ".25", serde_json::json!(250), "0.25"),
        (&PIDS, "200", serde_json::json!(200), "200"),
        (&DISK, "1G", serde_json::json!(1 << 30), "1G"),
        (&DISK, "0", serde_json::json!(0), "0B"),
        (&TMP, "64M", serde_json::json!(64 << 20), "64M"),
        (&CHECK, "http:/healthz?full=1", serde_json::json!("http:/healthz?full=1"), "http:/healthz?full=1"),
        (&CHECK, "started", serde_json::json!("started"), "started"),
        (&PROTOCOL, "tcp", serde_json::json!("tcp"), "tcp"),
        (&BOOT_TIMEOUT, "90s", serde_json::json!(90_000), "90s"),
        (&BOOT_TIMEOUT, "1h", serde_json::json!(3_600_000), "1h"),
        (&STOP_TIMEOUT, "0", serde_json::json!(0), "0s"),
        (&STOP_TIMEOUT, "1m30s", serde_json::json!(90_000), "90s"),
        (&MIN_READY, "500ms", serde_json::json!(500), "500ms"),
        (&BATCH, "2", serde_json::json!(2), "2"),
        (&MAX_UNAVAILABLE, "0", serde_json::json!(0), "0"),
        (&ON_PARTITION, "stop", serde_json::json!("stop"), "stop"),
    ] {
        assert_eq!(set(setting, word), Ok((json, words.to_owned())), "--{} {word}", setting.name);
    }
}

#[test]
fn default_takes_a_setting_back_and_none_those_that_are_limits() {
    for setting in ALL {
        let mut proc = Proc::new(&web(), 1);
        // The others' examples differ from their defaults.
        let example = if *setting == PROTOCOL { "tcp" } else { setting.example };
        setting.parse(example).expect("its example is valid").apply(&web(), &mut proc);
        assert_ne!(proc, Proc::new(&web(), 1), "--{} {}", setting.name, setting.example);
        setting.parse("default").expect("a word of each").apply(&web(), &mut proc);
        assert_eq!(proc, Proc::new(&web(), 1), "--{} default", setting.name);
        let is_limit = ["memory", "cpu", "pids"].contains(&setting.name);
        assert_eq!(setting.parse("none").is_ok(), is_limit, "--{} none", setting.name);
    }
}

#[test]
fn a_bad_value_is_refused_with_the_rule_and_an_example() {
    for (setting, words) in [
        (&MEMORY, &["", "1M", "0", "-1", "M", "1.5G", "99999999T", "256 M"][..]),
        (&CPU, &["", "0", "-1", "0.001", "NaN", "inf", "x", "1e9"]),
        (&PIDS, &["", "0", "3", "-1", "1.5", "99999999999"]),
        (&DISK, &["", "none", "-1", "2T", "x"]),
        (&TMP, &["", "none", "1.5G"]),
        (&CHECK, &["", "http", "http:", "http:x", "http:/a b", "http:/\r\nx", "https:/x", "Started"]),
        (&PROTOCOL, &["", "HTTP", "udp", "https"]),
        (&BOOT_TIMEOUT, &["", "0", "999ms", "3601s", "2h", "90", "-5s", "x", "5s ago"]),
        (&STOP_TIMEOUT, &["3601s", "-1s", "30"]),
        (&MIN_READY, &["601s", "11m", "1"]),
        (&BATCH, &["0", "10001", "99999999999", "-1", "1/4"]),
        (&MAX_UNAVAILABLE, &["10001", "-1", "10%"]),
        (&ON_PARTITION, &["", "Keep", "end"]),
    ] {
        for word in words {
            let error = setting.parse(word).expect_err(word);
            assert!(error.to_string().starts_with(&format!("--{} ", setting.name)), "{error}");
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
            assert!(error.hint().contains(setting.example), "{}", error.hint());
        }
    }
    let told = |setting: &'static Setting, word| setting.parse(word).expect_err(word).to_string();
    assert_eq!(told(&MEMORY, "1M"), "--memory 1M: no program starts with less than 8M");
    assert_eq!(told(&BOOT_TIMEOUT, "2h"), "--boot-timeout 2h: it goes from 1s to 1h");
    assert_eq!(told(&BOOT_TIMEOUT, "90"), "--boot-timeout 90: it takes a time such as 90s or 2m, or default");
    assert_eq!(told(&CHECK, "\u{1b}[2J"), "--check '': it takes started, listening, http:/PATH or default");
}

#[test]
fn a_row_out_of_bounds_is_read_as_the_bound() {
    let mut proc = Proc::new(&web(), 1);
    (proc.batch, proc.min_ready_ms, proc.max_unavailable) = (Some(0), Some(u64::MAX), u32::MAX);
    (proc.run.boot_timeout_ms, proc.run.stop_timeout_ms) = (Some(1), Some(u64::MAX));
    assert_eq!((proc.batch_of(40), proc.most_unavailable()), (1, 10_000));
    assert_eq!(proc.min_ready(), Duration::from_secs(600));
    assert_eq!(proc.run.boot_timeout(), Duration::from_secs(1));
    assert_eq!(proc.run.stop_timeout(), Duration::from_secs(3_600));
    proc.run.limits.processes_limit = Some(0);
    assert_eq!(proc.run.limits.processes(), 4);
    let wrong: Vec<&str> =
        ALL.into_iter().filter(|s| s.out_of_bounds(&proc).is_some()).map(|s| s.name).collect();
    assert_eq!(wrong, ["pids", "boot-timeout", "stop-timeout", "min-ready", "batch", "max-unavailable"]);
    assert!(ALL.into_iter().all(|setting| setting.out_of_bounds(&Proc::new(&web(), 1)).is_none()));
}

#[test]
fn defaults_are_those_that_hold_where_nothing_is_set() {
    let proc = Proc::new(&web(), 1);
    assert_eq!(
        (proc.run.boot_timeout(), proc.run.stop_timeout()),
        (Duration::from_secs(60), Duration::from_secs(30))
    );
    assert_eq!((proc.min_ready(), proc.most_unavailable()), (Duration::from_secs(1), 0));
    assert_eq!([1, 4, 5, 8].map(|count| proc.batch_of(count)), [1, 1, 2, 2]);
    assert_eq!((proc.run.disk_bytes(), proc.run.tmp_bytes()), (512 << 20, None));
    assert_eq!(proc.run.check_for(&web()), Check::Listening);
    assert_eq!(proc.run.check_for(&"job".parse().expect("a name")), Check::Started);
}

#[test]
fn web_alone_speaks_http_and_must_listen_but_for_rows_of_earlier_releases() {
    let judged = |name: &str, protocol: Option<Protocol>| {
        let name: ProcName = name.parse().expect("a name");
        let mut row = Proc::new(&name, 1);
        if protocol.is_none() {
            row.run.protocol = None;
        }
        (row.run.protocol_for(&name), row.run.check_for(&name))
    };
    let new = Some(Protocol::Tcp);
    assert_eq!(judged("web", new), (Protocol::Http, Check::Listening));
    assert_eq!(judged("webhook-sender", new), (Protocol::Tcp, Check::Started));
    assert_eq!(judged("job", new), (Protocol::Tcp, Check::Started));
    assert_eq!(judged("web", None), (Protocol::Http, Check::Listening));
    assert_eq!(judged("webhook-sender", None), (Protocol::Http, Check::Listening));
    assert_eq!(judged("job", None), (Protocol::Tcp, Check::Started));
    let mut row = Proc { run: RunSettings::default(), ..Proc::new(&web(), 1) };
    let name: ProcName = "webhook-sender".parse().expect("a name");
    PROTOCOL.parse("default").expect("a word").apply(&name, &mut row);
    assert_eq!(row.run.protocol, Some(Protocol::Tcp), "the default of now, not that of earlier releases");
}

#[test]
fn the_words_about_a_partition_are_the_deadlines() {
    let words = format!("{} at most", Value::Time(crate::deadlines::STOP_ON_PARTITION));
    assert!(STOP_TIMEOUT.more.contains(&words), "{}: {words}", STOP_TIMEOUT.more);
}

#[test]
fn names_columns_and_fields_are_each_settings_own() {
    for of in [|s: &Setting| s.name, |s: &Setting| s.heading, |s: &Setting| s.json] {
        let all: BTreeSet<&str> = ALL.map(of).into();
        assert_eq!(all.len(), ALL.len());
    }
}

#[test]
fn the_page_about_settings_is_made_from_the_table() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/settings.md");
    if std::env::var_os("BAZOOKA_WRITE_DOCS").is_some() {
        std::fs::write(file, docs()).expect("docs/settings.md can be written");
    }
    let there = std::fs::read_to_string(file).unwrap_or_default();
    assert_eq!(
        there,
        docs(),
        "docs/settings.md isn't current: BAZOOKA_WRITE_DOCS=1 cargo nextest run -p visor settings"
    );
}

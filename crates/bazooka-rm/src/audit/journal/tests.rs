//! Tests of the journal: what its lines say after whatever happens to the rows, to the rm and to its disk.

use visor::{
    schema::Extra,
    store::{Keys, Op, Txn, model::ModelStore},
    testing::until,
    visor::Visor,
};

use super::*;

/// Rows, and a journal that follows them while its task runs.
struct Rig {
    visor: Visor,
    folder: tempfile::TempDir,
    most_bytes: u64,
    ids: u32,
}

impl Rig {
    async fn new(most_bytes: u64) -> Rig {
        let visor = Visor::new(Arc::new(ModelStore::new()));
        visor.set_up().await.expect("it is in memory");
        Rig { visor, folder: tempfile::tempdir().expect("a folder"), most_bytes, ids: 0 }
    }

    fn start(&self) -> tokio::task::JoinHandle<()> {
        let keeper = JournalKeeper {
            store: self.visor.store().clone(),
            folder: self.folder.path().to_owned(),
            most_bytes: self.most_bytes,
            sources: Sources::default(),
            many: Arc::default(),
        };
        tokio::spawn(keeper.run())
    }

    async fn note(&mut self, who: &str, what: &str) -> String {
        self.ids += 1;
        let at = Timestamp::from_second(1_000_000_000 + i64::from(self.ids)).expect("in range");
        let entry = AuditEntry {
            what: what.into(),
            app: None,
            by: None,
            from: "laptop".into(),
            kind: None,
            at,
            extra: Extra::new(),
        };
        let audited = self.visor.audited(&who.parse().expect("valid"), entry, self.ids);
        audited.note().await.expect("it is in memory");
        format!("audit/{who}/{:013}-{:08x}", at.as_millisecond(), self.ids)
    }

    async fn write(&self, op: Op) {
        let txn = Txn { when: Vec::new(), then: vec![op], otherwise: Vec::new() };
        self.visor.store().txn(txn).await.expect("it is in memory");
    }

    async fn delete(&self, key: &str) {
        self.write(Op::Delete(Keys::One(key.to_owned()))).await;
    }

    fn files(&self) -> Vec<PathBuf> {
        let numbers = numbers(self.folder.path()).unwrap_or_default();
        numbers.into_iter().map(|number| path(self.folder.path(), number)).collect()
    }

    /// Each line in short: what was done by whom, or which key went.
    fn told(&self) -> Vec<String> {
        // The oldest file may be removed at that moment.
        let texts = self.files().into_iter().filter_map(|file| fs::read_to_string(file).ok());
        let lines: Vec<String> =
            texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        let lines = lines.iter().map(|line| serde_json::from_str(line));
        lines
            .filter_map(|line| match line {
                Ok(Line::Opened { .. }) => None,
                Ok(Line::Entry { who, what, .. }) => Some(format!("{who}: {what}")),
                Ok(Line::Unreadable { value, .. }) => Some(format!("unreadable: {value}")),
                Ok(Line::Deleted { key, .. }) => Some(format!("deleted {key}")),
                Err(error) => Some(format!("torn: {error}")),
            })
            .collect()
    }

    async fn tells(&self, wanted: &[String]) {
        until("the journal has each line once", Duration::from_secs(10), || async {
            let told = self.told();
            if told == wanted { Ok(()) } else { Err(format!("{told:#?}")) }
        })
        .await;
    }
}

#[tokio::test]
async fn it_has_each_entry_once_and_in_order_and_keeps_what_is_deleted() {
    let mut rig = Rig::new(1 << 20).await;
    rig.note("zoe", "before").await;
    rig.note("ada", "scale").await;
    let running = rig.start();
    // From here on it follows: what comes and goes at once is seen.
    rig.tells(&["zoe: before", "ada: scale"].map(str::to_owned)).await;
    let eves = rig.note("eve", "access grant eve").await;
    rig.delete(&eves).await;
    let wanted: Vec<String> =
        ["zoe: before", "ada: scale", "eve: access grant eve"].map(str::to_owned).into();
    let wanted = [wanted, vec![format!("deleted {eves}")]].concat();
    rig.tells(&wanted).await;
    running.abort();

    // While it is down, one row comes and one goes; what both came and went isn't seen.
    let adas = "audit/ada/1000000002000-00000002";
    rig.delete(adas).await;
    rig.note("ada", "late").await;
    let running = rig.start();
    let wanted = [wanted, vec![format!("deleted {adas}"), "ada: late".to_owned()]].concat();
    rig.tells(&wanted).await;
    running.abort();
    let running = rig.start();
    rig.note("ada", "last").await;
    rig.tells(&[wanted, vec!["ada: last".to_owned()]].concat()).await;
    running.abort();
}

#[tokio::test]
async fn a_rewritten_entry_and_one_that_is_none_are_lines_too() {
    let mut rig = Rig::new(1 << 20).await;
    let running = rig.start();
    let key = rig.note("eve", "what was done").await;
    rig.tells(&["eve: what was done".to_owned()]).await;
    let entry = br#"{"what": "nothing", "at": "2026-01-01T00:00:00Z"}"#;
    rig.write(Op::Put { key: key.clone(), value: entry.to_vec().into(), lease: None }).await;
    rig.write(Op::Put { key, value: "x".repeat(100_000).into(), lease: None }).await;
    let wanted =
        ["eve: what was done", "eve: nothing", &format!("unreadable: {}", "x".repeat(UNREADABLE_SHOWN))];
    rig.tells(&wanted.map(str::to_owned)).await;
    running.abort();
}

#[tokio::test]
async fn a_torn_line_is_written_again() {
    let mut rig = Rig::new(1 << 20).await;
    rig.note("ada", "one").await;
    rig.note("ada", "two").await;
    let running = rig.start();
    let wanted = ["ada: one", "ada: two"].map(str::to_owned);
    rig.tells(&wanted).await;
    running.abort();
    let file = rig.files().pop().expect("there is one");
    let whole = fs::read(&file).expect("it can be read");
    for torn in 1..=whole.len() {
        fs::write(&file, &whole[..whole.len() - torn]).expect("it can be written");
        let running = rig.start();
        rig.tells(&wanted).await;
        running.abort();
    }
}

#[tokio::test]
async fn it_is_bounded_and_repeats_nothing_of_what_is_gone() {
    let mut rig = Rig::new(8_000).await;
    let running = rig.start();
    let mut kept = Vec::new();
    for n in 0..200 {
        rig.note("ada", &format!("thing {n}")).await;
        kept.push(format!("ada: thing {n}"));
    }
    let ends_with_all = |told: Vec<String>| {
        let begins = kept.len().saturating_sub(told.len());
        if told.last() == kept.last() && told == kept[begins..] {
            Ok(begins)
        } else {
            Err(format!("{told:#?}"))
        }
    };
    let gone =
        until("the last is there", Duration::from_secs(10), || async { ends_with_all(rig.told()) }).await;
    assert!(gone > 100, "200 entries of 180 bytes don't fit in 8,000: {gone} are gone");
    running.abort();
    let bytes: u64 = rig.files().iter().map(|file| fs::metadata(file).expect("it is there").len()).sum();
    assert!(bytes < 12_000, "{bytes}");

    // The rows are all there still, and those that the journal once had aren't new.
    let running = rig.start();
    rig.note("ada", "thing 200").await;
    kept.push("ada: thing 200".to_owned());
    until("only the new one is added", Duration::from_secs(10), || async {
        let told = rig.told();
        let begins = kept.len() - told.len();
        if begins >= gone && told == kept[begins..] { Ok(()) } else { Err(format!("{told:#?}")) }
    })
    .await;
    running.abort();
}

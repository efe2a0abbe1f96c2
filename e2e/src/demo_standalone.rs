//! The origin story, told by real programs: app1 reads a table of db1 through gw1, and nobody else can.
//! Every proof that is printed is also asserted.
//!
//! Not here: the network and its firewalls (`article`), the database server (`database`).

pub(crate) mod database;
pub(crate) mod story;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::article::{Article, DB1, GW1, SOON, WEB1, socket};
use crate::gateway::{Backend, Gateway};
use crate::lab::{Process, Variant};
use crate::manifest::Manifests;
use crate::snapshot::Snapshot;
use crate::traffic::{Protocol, serve};
use crate::{packages, program, wait};

use database::{Database, Session, client};
use story::{Story, note, typed};

/// The manifest that asks for the forward.
const FORWARD: &str = "portforward.yaml";

/// What app1 wants to know.
const QUERY: &str = "SELECT * FROM shop.orders";

/// Tells the whole story; fails at the first proof that does not hold.
pub fn run() -> Result<()> {
    let story = Story::begin();
    packages::install_missing(&[packages::LAB, packages::MARIADB].concat())?;
    let mut demo = Demo::stage(story)?;
    let before = Snapshot::of(&demo.article.gw1)?;
    demo.firewalls_hold()?;
    let agent = demo.agent_starts()?;
    let session = demo.forward_works()?;
    demo.manifest_goes(session)
        .and_then(|()| demo.cleanup(agent, &before))
        .with_context(|| demo.gateway.diagnostics())?;
    demo.story.end();
    Ok(())
}

struct Demo {
    story: Story,
    article: Article,
    gateway: Gateway,
    database: Database,
    // Answers on web1 until the demo ends.
    _web: Process,
}

impl Demo {
    fn stage(story: Story) -> Result<Self> {
        story.chapter("the network: app1, gw1, db1, each with its own firewall (INPUT and FORWARD DROP)");
        let prepared = Database::prepare()?;
        let article = Article::build(Variant::Nft)?;
        let database = prepared.start(&article.db1)?;
        let web = serve(&article.web1, &[(Protocol::Tcp, socket(WEB1, 3306))])?;
        let manifests = Manifests::copy_of(&program::repository()?.join("examples"))?;
        let gateway = Gateway::new(&article.gw1, Backend::Auto, manifests)?;
        Ok(Self { story, article, gateway, database, _web: web })
    }

    fn firewalls_hold(&mut self) -> Result<()> {
        let app1 = &self.article.app1;
        self.story.chapter("before: the firewalls hold");
        self.story.refused("app1 cannot reach db1 directly", app1, &client(DB1, QUERY))?;
        self.story.refused("app1 cannot reach it through gw1 yet", app1, &client(GW1, QUERY))
    }

    fn agent_starts(&mut self) -> Result<Process> {
        self.story.chapter("sallyport-node-agent runs on gw1 with the manifests of examples/");
        typed(&self.article.gw1, &self.gateway.run_command()?);
        let started = Instant::now();
        let mut agent = self.gateway.start()?;
        wait::until_true("the database answering through gw1", SOON, || {
            if let Some(status) = agent.ended()? {
                bail!("the agent ended with {status}");
            }
            Ok(self.article.app1.run(&client(GW1, "SELECT 1"))?.success())
        })
        .with_context(|| self.gateway.diagnostics())?;
        note(&format!("answers after {} ms", started.elapsed().as_millis()));
        Ok(agent)
    }

    fn forward_works(&mut self) -> Result<Session> {
        let Article { app1, app2, db1, .. } = &self.article;
        let story = &mut self.story;
        story.shows("app1 reads a table of db1 through gw1", app1, &client(GW1, QUERY), "brass bell")?;
        let session = Session::open(app1, GW1)?;
        let connected = self.database.who_is_connected();
        story.shows("db1 sees the address of gw1", db1, &connected, GW1)?;
        story.refused("app1 still cannot reach db1 directly", app1, &client(DB1, QUERY))?;
        story.refused("app2, which no manifest lists, is refused", app2, &client(GW1, QUERY))?;
        let ask_web1 =
            [program::own()?.display().to_string(), "ask".to_owned(), "tcp".to_owned(), socket(WEB1, 3306).to_string()];
        let what = "what gw1 merely routes to port 3306 of web1 is not captured";
        story.shows(what, app1, &ask_web1, "web1 10.30.1.80:")?;
        Ok(session)
    }

    fn manifest_goes(&mut self, mut session: Session) -> Result<()> {
        let Article { app1, gw1, .. } = &self.article;
        self.story.chapter("the manifest goes: the open session is cut, new ones are refused");
        session.expect_answer().context("the session before its forward went")?;
        note(&format!("rm {FORWARD}"));
        self.gateway.manifests().remove(FORWARD)?;
        wait::until_true("no connection to db1 being tracked on gw1", SOON, || {
            let tracked = gw1.conntrack(&["-p", "tcp", "--orig-port-dst", "3306"])?;
            Ok(!tracked.iter().any(|entry| entry.contains(DB1)))
        })?;
        session.expect_silence(Duration::from_secs(2))?;
        self.story.proved("the open session is cut: its next query is never answered");
        self.story.refused("new sessions are refused again", app1, &client(GW1, QUERY))
    }

    fn cleanup(&mut self, mut agent: Process, before: &Snapshot) -> Result<()> {
        let gw1 = &self.article.gw1;
        self.story.chapter("cleanup: gw1 is as it was before");
        let status = agent.terminate(SOON).context("end the agent")?;
        ensure!(status.success(), "the agent ended with {status} on SIGTERM");
        typed(gw1, &self.gateway.cleanup_command()?);
        self.gateway.cleanup()?;
        before.expect_equal(&Snapshot::of(gw1)?)?;
        let compared = before.names().join(", ");
        self.story.proved(&format!("equal before and after: {compared}"));
        Ok(())
    }
}

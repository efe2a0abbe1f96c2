//! Deleting a definition deletes every object of its kind, and the agents take that for an accident: rules stay.

use std::time::Duration;

use anyhow::{Result, ensure};
use sallyport_e2e::cluster::PODS;
use sallyport_e2e::cluster::scene::scene;
use sallyport_e2e::faults::figure;
use sallyport_e2e::wait;

#[test]
fn rules_stay_when_the_definition_of_slices_is_deleted() -> Result<()> {
    scene(|cluster| {
        let rules = cluster.our_rules()?;
        let mut load = cluster.load(180)?;
        cluster.kubectl("delete customresourcedefinition forwardslices.sallyport.dev --wait=false")?;
        wait::until_true("the definition being gone", PODS, || {
            Ok(cluster.definitions()?.iter().all(|name| !name.contains("forwardslices")))
        })?;
        wait::holds_for("rules without slices", Duration::from_secs(10), || Ok(cluster.our_rules()? == rules))?;
        ensure!(load.is_running()?, "the load ended before the definition was gone");
        let report = load.end()?;
        report.expect_no_loss()?;
        figure(25, format_args!("kind: {report}"));
        cluster.expect_answers()?;

        cluster.kubectl("apply --server-side --force-conflicts --filename crds")?;
        cluster.wait_until_gateways_are_ready()?;
        cluster.wait_until_ready("payments", "db1")?;
        ensure!(cluster.our_rules()? == rules, "the return of the definition changed rules");
        Ok(())
    })
}

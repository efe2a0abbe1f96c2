//! Previews and plans say what a pass would do, and do nothing.

use crate::converge::preview::{PlannedChange, Preview};

use super::*;

#[tokio::test]
async fn a_preview_says_what_a_pass_would_do_and_does_nothing() {
    let mut scene = Scene::with_switches();
    let wanted = intents(&forward("a", 8000));
    let Preview { ops, families, ended, failures, unreadable: _ } = scene
        .converger
        .preview(&Rc::new(wanted.clone()), Waiting::default(), &NodeFacts::of(&local(), Moment::default()))
        .await
        .unwrap();
    assert_eq!((families, ended, failures.len()), (vec![Family::V4], 0, 0));
    assert_eq!((scene.kernel().applied.len(), scene.switch().as_str()), (0, "0"));
    scene.pass(&wanted).await.unwrap();
    assert_eq!(scene.kernel().applied, [ops]);
    assert!(
        scene
            .converger
            .preview(&Rc::new(wanted.clone()), Waiting::default(), &NodeFacts::of(&local(), Moment::default()))
            .await
            .unwrap()
            .ops
            .is_empty()
    );
}

#[tokio::test]
async fn planned_forwards_change_nothing_and_what_they_would_change_is_what_apply_changes() {
    let mut scene = Scene::with_switches();
    let carried = intents(&forward("a", 8000));
    scene.pass(&carried).await.unwrap();
    let before = scene.kernel().rules().await;
    // A new one, and an edit of the one that is carried.
    let wanted = planned(&carried, &(forward("a", 8002) + &forward("b", 8001)));
    scene.pass(&wanted).await.unwrap();
    let plans = scene.converger.plans(&wanted, &NodeFacts::of(&local(), Moment::default())).unwrap().unwrap();
    assert_eq!(scene.kernel().rules().await, before);
    let rule = |port: u16| {
        format!("-s 10.30.1.80/32 -d 10.30.1.78/32 -p tcp -m tcp --dport {port} -j DNAT --to-destination 10.30.1.79")
    };
    let (old, edited, new) = (rule(8000), rule(8002), rule(8001));
    let answers = |port: u16| format!("-A SALLY-IN -s 10.30.1.79/32 -p tcp -m tcp --sport {port} -j DROP\n");
    let (of_old, of_edited, of_new) = (answers(8000), answers(8002), answers(8001));
    let edit =
        format!("# IPv4 nat\n- -A SALLY-MT {old}\n+ -A SALLY-MT {edited}\n# IPv4 mangle\n- {of_old}+ {of_edited}");
    assert_eq!(plans[0].change, edit);
    assert_eq!(plans[1].change, format!("# IPv4 nat\n+ -A SALLY-MT {new}\n# IPv4 mangle\n+ {of_new}"));
    let named: Vec<&str> = plans.iter().map(|plan| plan.forward.name.as_str()).collect();
    assert_eq!(named, ["a", "b"]);

    scene.pass(&intents(&(forward("a", 8000) + &forward("b", 8001)))).await.unwrap();
    assert_eq!(scene.kernel().rules().await.v4.nat.ours["SALLY-MT"][..], [Line::read(old), Line::read(new)]);
}

#[tokio::test]
async fn a_plan_says_what_else_would_happen() {
    let mut scene = Scene::with_switches();
    let nothing = intents(REQUIRE);
    scene.pass(&nothing).await.unwrap();
    let change = |plans: Vec<PlannedChange>| plans.into_iter().next().unwrap().change;
    let wanted = planned(&nothing, &forward("a", 8000));
    let told = change(scene.converger.plans(&wanted, &NodeFacts::of(&local(), Moment::default())).unwrap().unwrap());
    assert!(told.contains("+ -I PREROUTING 1 -j SALLY-PRE\n"), "{told}");
    assert!(told.contains("turn it on on this host\n"), "{told}");
    let mut open = wanted.clone();
    open.node.ip_forward = IpForward::Manage;
    let told = change(scene.converger.plans(&open, &NodeFacts::of(&local(), Moment::default())).unwrap().unwrap());
    assert!(told.ends_with("# would turn on forwarding of IPv4 packets\n"), "{told}");
    let mut refused = wanted.clone();
    refused.node.addresses.clear();
    let told = change(scene.converger.plans(&refused, &NodeFacts::of(&local(), Moment::default())).unwrap().unwrap());
    assert!(told.starts_with("# it would fail here: ") && told.ends_with("(NoListenAddress)\n"), "{told}");
}

//! Where a pod had better not run, in the scheduler's words, beside whatever the administrator's template says.

use k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, PreferredSchedulingTerm,
};

use crate::domain::node::AvoidedNodes;

/// As much as a preference can weigh.
const WEIGHT: i32 = 100;

/// Keeps the pod away from nodes. Nodes are told by their name and not by the label `kubernetes.io/hostname`, which may
/// differ from it.
pub(super) fn avoid(spec: &mut PodSpec, nodes: &AvoidedNodes) {
    if nodes.never.is_empty() && nodes.rather_not.is_empty() {
        return;
    }
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let affinity = affinity.node_affinity.get_or_insert_default();
    if !nodes.never.is_empty() {
        let required = affinity
            .required_during_scheduling_ignored_during_execution
            .get_or_insert_with(|| NodeSelector {
                node_selector_terms: Vec::new(),
            });
        let terms = &mut required.node_selector_terms;
        if terms.is_empty() {
            terms.push(NodeSelectorTerm::default());
            terms[0].match_fields = Some(others(&nodes.never));
        } else {
            // A node must match one of the terms. One that says nothing matches no node, and must not begin to.
            for term in terms.iter_mut().filter(|term| says_something(term)) {
                term.match_fields.get_or_insert_default().extend(others(&nodes.never));
            }
        }
    }
    if !nodes.rather_not.is_empty() {
        let preference = NodeSelectorTerm {
            match_fields: Some(others(&nodes.rather_not)),
            ..Default::default()
        };
        affinity
            .preferred_during_scheduling_ignored_during_execution
            .get_or_insert_default()
            .push(PreferredSchedulingTerm {
                weight: WEIGHT,
                preference,
            });
    }
}

fn says_something(term: &NodeSelectorTerm) -> bool {
    let expressions = term.match_expressions.iter().flatten();
    expressions.chain(term.match_fields.iter().flatten()).next().is_some()
}

/// Any node but these. Fields take one value each.
fn others(nodes: &[String]) -> Vec<NodeSelectorRequirement> {
    let other = |node: &String| NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "NotIn".to_owned(),
        values: Some(vec![node.clone()]),
    };
    nodes.iter().map(other).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn avoided(affinity: &Value, never: &[&str], rather_not: &[&str]) -> Value {
        let mut spec: PodSpec = serde_json::from_value(json!({"containers": [], "affinity": affinity})).unwrap();
        let owned = |nodes: &[&str]| nodes.iter().map(|&node| node.to_owned()).collect();
        avoid(
            &mut spec,
            &AvoidedNodes {
                never: owned(never),
                rather_not: owned(rather_not),
            },
        );
        serde_json::to_value(spec).unwrap()["affinity"].take()
    }

    fn not(node: &str) -> Value {
        json!({"key": "metadata.name", "operator": "NotIn", "values": [node]})
    }

    #[test]
    fn without_such_nodes_nothing_is_added() {
        assert_eq!(avoided(&Value::Null, &[], &[]), Value::Null);
    }

    #[test]
    fn some_are_out_of_the_question_and_others_are_for_want_of_better() {
        assert_eq!(
            avoided(&Value::Null, &["a", "b"], &["c"]),
            json!({"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [not("a"), not("b")]}]},
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": {"matchFields": [not("c")]}}],
            }})
        );
    }

    #[test]
    fn the_administrators_own_affinity_stays() {
        let pool = json!({"key": "pool", "operator": "In", "values": ["builds"]});
        let zone = json!({"key": "zone", "operator": "In", "values": ["x"]});
        let pods =
            json!({"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname"}]});
        let given = json!({
            "podAntiAffinity": pods,
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions": [pool]}, {}, {"matchExpressions": [zone], "matchFields": [not("z")]},
                ]},
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 7, "preference": {"matchExpressions": [zone]}}],
            },
        });
        assert_eq!(
            avoided(&given, &["a"], &["c"]),
            json!({
                "podAntiAffinity": pods,
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                        {"matchExpressions": [pool], "matchFields": [not("a")]},
                        {},
                        {"matchExpressions": [zone], "matchFields": [not("z"), not("a")]},
                    ]},
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 7, "preference": {"matchExpressions": [zone]}},
                        {"weight": 100, "preference": {"matchFields": [not("c")]}},
                    ],
                },
            })
        );
    }
}

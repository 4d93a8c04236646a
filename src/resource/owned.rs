//! What attachments have in sets of nf_tables: elements, each with its owner for a comment.

use anyhow::Result;

use super::owner::{Owner, strays};
use super::{Finding, Kept};
use crate::net;
use crate::net::nft::{Element, Nft, Set, Transaction, repeat_if_overtaken};

/// The element of an owner, without data.
pub(super) fn element(owner: &Owner, key: Vec<u8>) -> Element {
    Element { key, comment: Some(owner.as_str().to_owned()), ..Element::default() }
}

/// Who has an element, for people.
pub(super) fn whose(element: &Element) -> String {
    element.comment.clone().unwrap_or_else(|| "nobody's".to_owned())
}

/// Whether an element is another owner's, who has the address or the name by now.
pub(super) fn is_of_another(element: &Element, owner: &Owner) -> bool {
    element.comment.as_deref().is_some_and(|comment| comment != owner.as_str())
}

/// Tells which elements without data are missing or another's; `name` is what people call one.
pub(super) fn observe(
    nft: &mut Nft,
    wanted: &[(Set<'_>, Element)],
    name: impl Fn(&Element) -> String,
) -> net::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (set, wanted) in wanted {
        let object = || format!("element {} of {set}", name(wanted));
        match nft.element(*set, &wanted.key)? {
            None => findings.push(Finding::missing(object())),
            Some(found) if found == *wanted => {}
            Some(found) => findings.push(Finding::differs(object(), whose(wanted), whose(&found))),
        }
    }
    Ok(findings)
}

/// Removes an owner's elements, which are known. What is another's by now stays.
pub(super) fn remove(nft: &mut Nft, owner: &Owner, elements: &[(Set<'_>, Element)]) -> net::Result<()> {
    repeat_if_overtaken(|| {
        let mut transaction = Transaction::new();
        for (set, ours) in elements {
            if nft.element(*set, &ours.key)?.is_some_and(|found| !is_of_another(&found, owner)) {
                transaction.delete_element(*set, &ours.key);
            }
        }
        nft.commit(transaction)
    })
}

/// Removes whatever an owner has in some sets, by going through them.
pub(super) fn remove_all_of(nft: &mut Nft, sets: &[Set<'_>], owner: &Owner) -> net::Result<()> {
    repeat_if_overtaken(|| {
        let mut transaction = Transaction::new();
        for set in sets {
            let found = nft.elements(*set)?.into_iter();
            let ours = found.filter(|element| element.comment.as_deref() == Some(owner.as_str()));
            let keys: Vec<Vec<u8>> = ours.map(|element| element.key).collect();
            transaction.delete_elements(*set, &keys);
        }
        nft.commit(transaction)
    })
}

/// The owners on a network that have elements in some sets.
pub(super) fn owners(nft: &mut Nft, sets: &[Set<'_>], network: &str) -> net::Result<Vec<Owner>> {
    let mut owners = Vec::new();
    for set in sets {
        let comments = nft.elements(*set)?.into_iter().filter_map(|element| element.comment);
        owners.extend(comments.map(Owner::from_comment).filter(|owner| owner.is_on(network)));
    }
    owners.sort();
    owners.dedup();
    Ok(owners)
}

/// Removes the elements of a network's attachments that are not kept.
pub(super) fn collect(nft: &mut Nft, sets: &[Set<'_>], network: &str, kept: &Kept<'_>) -> Result<()> {
    for owner in strays(owners(nft, sets, network)?, kept)? {
        remove_all_of(nft, sets, &owner)?;
    }
    Ok(())
}

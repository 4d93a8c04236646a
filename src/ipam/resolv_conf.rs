//! resolv.conf(5) as the reference reads it.

use crate::spec::result::Dns;

/// The DNS settings that the text of a resolv.conf asks for.
///
/// `nameserver` adds its address, `search` and `options` add all that follows, of several `domain` the last one
/// counts. Lines with less than a keyword and a value, comments and unknown keywords are passed over.
pub(super) fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        let (Some(keyword), Some(first)) = (words.next(), words.next()) else { continue };
        let all = || std::iter::once(first).chain(words.clone()).map(str::to_owned);
        match keyword {
            "nameserver" => dns.nameservers.push(first.to_owned()),
            "domain" => first.clone_into(&mut dns.domain),
            "search" => dns.search.extend(all()),
            "options" => dns.options.extend(all()),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keywords() {
        let dns = parse(
            "# a comment\n; another\n\n nameserver 192.0.2.1 # first\nnameserver 2001:db8::1\ndomain a.test\n\
             domain b.test\nsearch c.test d.test\nsearch e.test\noptions ndots:2 edns0\nsortlist 192.0.2.0\nsearch\n",
        );
        assert_eq!(dns.nameservers, ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(dns.domain, "b.test");
        assert_eq!(dns.search, ["c.test", "d.test", "e.test"]);
        assert_eq!(dns.options, ["ndots:2", "edns0"]);
        assert!(parse("").is_empty());
    }
}

package policy

import (
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// reference is where the file names a domain.
type reference struct {
	domain string
	at     *yaml.Node
}

// sharing is where a builder says who may use it.
type sharing struct {
	builder int // in Policy.Builders
	at      *yaml.Node
}

// refer notes that domains are named at a node, or by default in the mapping
// around it.
func (d *decoder) refer(n, around *yaml.Node, domains []string) {
	if n != nil && n.Kind == yaml.SequenceNode {
		for _, item := range n.Content {
			if item.Kind == yaml.ScalarNode && item.ShortTag() == "!!str" {
				d.references = append(d.references, reference{item.Value, item})
			}
		}
		return
	}
	for _, name := range domains {
		d.references = append(d.references, reference{name, orNode(n, around)})
	}
}

// relations looks at what parts of the file say about each other.
func (d *decoder) relations() {
	d.danglingDomains()
	for _, s := range d.shared {
		d.sharedBuilder(s)
		d.provenBuilder(s)
	}
	d.jumpBuilders()
	d.signersAreNotImpersonated()
	d.neededResourcesExist()
	d.limitsCount()
}

func (d *decoder) danglingDomains() {
	var known []string
	for _, domain := range d.pol.Domains {
		known = append(known, domain.Name)
	}
	for _, r := range d.references {
		if r.domain == "" || slices.Contains(known, r.domain) {
			continue
		}
		d.mistake(r.at, "add it to domains, or use one of: "+strings.Join(known, ", "), "domain %s does not exist", quote(r.domain))
	}
}

// sharedBuilder refuses a builder on which two domains may put what they like: it
// has one store for all, so each could plant paths for the other.
func (d *decoder) sharedBuilder(s sharing) {
	b := d.pol.Builders[s.builder]
	var full []string
	for _, domain := range b.Domains {
		if d.pol.hasFull(domain) {
			full = append(full, quote(domain))
		}
	}
	if len(full) < 2 {
		return
	}
	d.mistake(s.at, "give each of these domains its own builders, or make them one domain",
		"domains %s have principals with role full and share builder %s: each could plant store paths there for the other", strings.Join(full, " and "), quote(b.Name))
}

// provenBuilder refuses a builder that may build from other bytes than ours for a
// domain that signs only what is proven.
func (d *decoder) provenBuilder(s sharing) {
	b := d.pol.Builders[s.builder]
	for _, name := range b.Domains {
		if dom := d.pol.DomainNamed(name); dom != nil && dom.Sign == SignProven && b.Content != ContentMatch {
			d.mistake(s.at, "write builder_content: match for it, or sign: domain", "domain %s signs only what is proven, and nothing proves what builder %s makes of inputs that need not be ours",
				quote(name), quote(b.Name))
		}
	}
}

// hasFull reports whether anybody in a domain may upload and build.
func (p *Policy) hasFull(domain string) bool {
	return slices.ContainsFunc(p.Principals, func(q Principal) bool { return q.Domain == domain && q.Role == RoleFull })
}

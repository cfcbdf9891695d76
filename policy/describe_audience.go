package policy

import (
	"fmt"
	"strings"
)

// Who can read what, and for whom somebody can plant paths, in words for people.

// publicKeys are the names of the keys whose signatures open a path to every
// domain.
func (p *Policy) publicKeys() []string {
	var all []string
	for _, key := range p.TrustedPublicKeys {
		if key.Public {
			all = append(all, key.Name())
		}
	}
	return all
}

// plantedFor says who has to live with what a full key of a domain plants.
func (d *Domain) plantedFor() string {
	if d.Share == SharePublic {
		return "everybody of every domain (share: public)"
	}
	return "everybody of this domain"
}

// readers says who can read what a domain has.
func (t *description) readers(d *Domain) {
	public := strings.Join(t.pol.publicKeys(), ", ")
	switch {
	case d.Share == SharePublic:
		t.line(1, "Every domain can read what this one has built and what proves itself, its sources and .drv files included (share: public).")
		t.line(1, "What its keys upload and nothing proves stays its own%s.", t.unlessPublished(d.Name))
	case public != "":
		t.line(1, "Nobody else can read what this domain has, but for what %s has signed: every domain sees that.", public)
	default:
		t.line(1, "Nobody else can read what this domain has.")
	}
	if others := t.sharedWith(d.Name); len(others) > 0 {
		t.line(1, "It reads and builds with what %s %s to everybody.", strings.Join(others, " and "), shows(len(others)))
	}
}

func shows(n int) string {
	if n == 1 {
		return "shows"
	}
	return "show"
}

// unlessPublished names the principals for whose uploads the domain vouches.
func (t *description) unlessPublished(domain string) string {
	var all []string
	for _, q := range t.pol.Principals {
		if q.Domain == domain && q.Publish {
			all = append(all, q.Name)
		}
	}
	if len(all) == 0 {
		return ""
	}
	return fmt.Sprintf(", unless %s sent it (publish)", strings.Join(all, " or "))
}

// sharedWith are the other domains that show what they have to everybody.
func (t *description) sharedWith(domain string) []string {
	var all []string
	for _, d := range t.pol.Domains {
		if d.Name != domain && d.Share == SharePublic && t.pol.hasFull(d.Name) {
			all = append(all, "domain "+d.Name)
		}
	}
	return all
}

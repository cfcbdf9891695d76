package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/proxy"
	"nixbastion/proxy/upstream"
)

// cacheRequest is one command on the store. It is what travels over the socket.
type cacheRequest struct {
	Do        string   `json:"do"`
	Domain    string   `json:"domain"`
	Paths     []string `json:"paths,omitempty"`
	JSON      bool     `json:"json,omitempty"`
	All       bool     `json:"all,omitempty"`       // ls: of all domains
	Referrers bool     `json:"referrers,omitempty"` // rm: take them along
	Vouch     bool     `json:"vouch,omitempty"`     // import: what nothing proves
	Size      *int64   `json:"size,omitempty"`      // gc: nil is the low watermark

	paths []nix.StorePath // set by check
}

// desk is where the answer goes, and files come from or go to.
type desk struct {
	out      io.Writer
	progress func(line string)
	source   cache.Source // of import
	sink     cache.Sink   // of export
}

// cacheWork is what each request does, and whether it changes the store or may
// make the proxy read or write much on somebody's behalf.
var cacheWork = map[string]struct {
	run     func(*cacheRequest, context.Context, *cache.Cache, *policy.Policy, *desk) error
	changes bool
}{
	"ls":     {run: (*cacheRequest).ls},
	"info":   {run: (*cacheRequest).info},
	"verify": {run: (*cacheRequest).verify, changes: true},
	"gc":     {run: (*cacheRequest).gc, changes: true},
	"pin":    {run: (*cacheRequest).pin, changes: true},
	"unpin":  {run: (*cacheRequest).unpin, changes: true},
	"rm":     {run: (*cacheRequest).rm, changes: true},
	"sign":   {run: (*cacheRequest).sign, changes: true},
	"import": {run: (*cacheRequest).imports, changes: true},
	"export": {run: (*cacheRequest).exports, changes: true},
}

// check parses what came as text.
func (q *cacheRequest) check() error {
	if _, known := cacheWork[q.Do]; !known {
		return fmt.Errorf("the proxy knows no command %q for its store; it may be of another version", q.Do)
	}
	if q.Domain == "" || strings.ContainsAny(q.Domain, "/\x00") {
		return fmt.Errorf("%q is not the name of a domain", q.Domain)
	}
	q.paths = nil
	for _, text := range q.Paths {
		p, err := nix.ParseStorePath(text)
		if err != nil {
			return err
		}
		q.paths = append(q.paths, p)
	}
	return nil
}

func (q *cacheRequest) run(ctx context.Context, c *cache.Cache, pol *policy.Policy, d *desk) error {
	d.progress = seldom(d.progress)
	err := cacheWork[q.Do].run(q, ctx, c, pol, d)
	if user, ok := errors.AsType[*nix.UserError](err); ok && user.Err == nil {
		return errors.New(user.Message)
	}
	if errors.Is(err, nix.ErrNotFound) {
		return fmt.Errorf("%w in domain %s", err, q.Domain)
	}
	return err
}

// progressEvery is how often work tells how far it is.
const progressEvery = time.Second

// seldom lets one line pass each progressEvery, the first of them not at once.
func seldom(say func(string)) func(string) {
	last := time.Now()
	return func(line string) {
		if now := time.Now(); now.Sub(last) >= progressEvery {
			last = now
			say(line)
		}
	}
}

// pathAnswer is a path in JSON.
type pathAnswer struct {
	Domain           string   `json:"domain"`
	Path             string   `json:"path"`
	NarHash          string   `json:"nar_hash"`
	NarSize          uint64   `json:"nar_size"`
	References       []string `json:"references"`
	Deriver          string   `json:"deriver,omitempty"`
	ContentAddress   string   `json:"content_address,omitempty"`
	Signatures       []string `json:"signatures"`
	Provenance       string   `json:"provenance"`
	RegistrationTime int64    `json:"registration_time"`
	LastUse          int64    `json:"last_use"`
	Pinned           bool     `json:"pinned"`
	Public           bool     `json:"public"`
}

func newPathAnswer(e cache.Entry) pathAnswer {
	a := pathAnswer{
		Domain: e.Domain, Path: e.Info.Path.String(), NarHash: e.Info.NarHash.String(), NarSize: e.Info.NarSize,
		References: []string{}, Signatures: []string{}, ContentAddress: e.Info.CA.String(), Provenance: e.Provenance.String(),
		RegistrationTime: e.Info.RegistrationTime, LastUse: e.LastUse / int64(time.Second), Pinned: e.Pinned, Public: e.Domain == "",
	}
	if !e.Info.Deriver.IsZero() {
		a.Deriver = e.Info.Deriver.String()
	}
	for _, ref := range e.Info.References {
		a.References = append(a.References, ref.String())
	}
	for _, sig := range e.Info.Sigs {
		a.Signatures = append(a.Signatures, sig.String())
	}
	return a
}

func (q *cacheRequest) ls(ctx context.Context, c *cache.Cache, pol *policy.Policy, d *desk) error {
	list, none := newArray(d.out, q.JSON), true
	err := c.List(ctx, q.Domain, q.All, func(e cache.Entry) error {
		none = false
		if q.JSON {
			return list.add(newPathAnswer(e))
		}
		marks := ""
		if q.All {
			marks += "  " + domainWord(e.Domain)
		}
		if e.Pinned {
			marks += "  pinned"
		}
		_, err := fmt.Fprintf(d.out, "%-16s  %10s  %-17s  %s%s\n", dateText(e.LastUse/int64(time.Second)), upstream.Bytes(e.Info.NarSize), e.Provenance, e.Info.Path, marks)
		return err
	})
	if err == nil && none && !q.All { // a domain that was removed may have paths left
		err = knows(pol, q.Domain)
	}
	return errors.Join(err, list.end(err == nil))
}

// knows refuses a domain that the policy does not have.
func knows(pol *policy.Policy, domain string) error {
	if pol.DomainNamed(domain) == nil {
		return fmt.Errorf("the policy has no domain %s", domain)
	}
	return nil
}

// array writes a JSON array of any length.
type array struct {
	out   io.Writer
	json  bool
	begun bool
}

func newArray(out io.Writer, json bool) *array { return &array{out: out, json: json} }

func (a *array) add(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	before := ",\n"
	if !a.begun {
		before, a.begun = "[\n", true
	}
	_, err = io.WriteString(a.out, before+proxy.Printable(string(text)))
	return err
}

// end closes the array; one that is not complete stays open, and is no JSON.
func (a *array) end(complete bool) error {
	if !a.json || !complete {
		return nil
	}
	text := "\n]\n"
	if !a.begun {
		text = "[]\n"
	}
	_, err := io.WriteString(a.out, text)
	return err
}

func (q *cacheRequest) answer(d *desk, v any, text string) error {
	if q.JSON {
		var asJSON strings.Builder
		enc := json.NewEncoder(&asJSON)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(v); err != nil {
			return err
		}
		text = proxy.Printable(asJSON.String())
	}
	_, err := io.WriteString(d.out, text)
	return err
}

// lostAnswer are paths that are gone, in JSON.
type lostAnswer struct {
	Domain string `json:"domain"`
	Path   string `json:"path"`
}

func lostAnswers(lost []cache.Lost) ([]lostAnswer, string) {
	list, text := []lostAnswer{}, ""
	for _, l := range lost {
		list = append(list, lostAnswer{l.Domain, l.Path.String()})
		text += fmt.Sprintf("%s  %s\n", l.Path, domainWord(l.Domain))
	}
	return list, text
}

func (q *cacheRequest) verify(ctx context.Context, c *cache.Cache, _ *policy.Policy, d *desk) error {
	v, err := c.Verify(ctx, q.Domain, q.paths, func(v cache.Verification) {
		d.progress(fmt.Sprintf("verified %d of %s, %s", v.NARs, policy.CountOf(v.Of, "NAR"), upstream.Bytes(v.Bytes)))
	})
	lost, lostText := lostAnswers(v.Lost)
	text := fmt.Sprintf("verified %s, %s: ", policy.CountOf(v.NARs, "NAR"), upstream.Bytes(v.Bytes))
	switch {
	case err != nil:
		text = lostText
	case len(lost) == 0:
		text += "all are right\n"
	default:
		text += fmt.Sprintf("these paths were damaged or missing and are dropped\n%s", lostText)
	}
	sayErr := q.answer(d, struct {
		NARs  int64        `json:"nars"`
		Bytes int64        `json:"bytes"`
		Lost  []lostAnswer `json:"lost"`
	}{v.NARs, v.Bytes, lost}, text)
	if err == nil && len(lost) > 0 {
		err = fmt.Errorf("%s dropped", policy.CountOf(len(lost), "path"))
	}
	return errors.Join(err, sayErr)
}

func (q *cacheRequest) gc(ctx context.Context, c *cache.Cache, _ *policy.Policy, d *desk) error {
	target := int64(-1)
	if q.Size != nil {
		target = *q.Size
	}
	paths, bytes, err := c.Collect(ctx, target, func(paths, bytes int64) {
		d.progress(fmt.Sprintf("evicted %s, %s stay", policy.CountOf(paths, "path"), upstream.Bytes(bytes)))
	})
	sayErr := q.answer(d, struct {
		Evicted int64 `json:"evicted"`
		Bytes   int64 `json:"bytes"`
	}{paths, bytes}, fmt.Sprintf("evicted %s; the store takes %s\n", policy.CountOf(paths, "path"), upstream.Bytes(bytes)))
	if err == nil && target >= 0 && bytes > target {
		err = errors.New("the rest is pinned or in use")
	}
	return errors.Join(err, sayErr)
}

func (q *cacheRequest) pin(_ context.Context, c *cache.Cache, _ *policy.Policy, d *desk) error {
	if err := c.PinPaths(q.Domain, q.paths); err != nil {
		return err
	}
	return q.pinned(c, d)
}

func (q *cacheRequest) unpin(_ context.Context, c *cache.Cache, _ *policy.Policy, d *desk) error {
	if err := c.UnpinPaths(q.Domain, q.paths); err != nil {
		return err
	}
	return q.pinned(c, d)
}

// pinned tells what is pinned now.
func (q *cacheRequest) pinned(c *cache.Cache, d *desk) error {
	all := []string{}
	for _, p := range c.PinnedPaths(q.Domain) {
		all = append(all, p.String())
	}
	return q.answer(d, struct {
		Pinned []string `json:"pinned"`
	}{all}, fmt.Sprintf("%s pinned in domain %s\n", policy.CountOf(len(all), "path"), q.Domain))
}

func (q *cacheRequest) rm(ctx context.Context, c *cache.Cache, _ *policy.Policy, d *desk) error {
	gone, err := c.Remove(ctx, q.Domain, q.paths, q.Referrers)
	list, text := lostAnswers(gone)
	if len(gone) == 0 && err != nil {
		return err
	}
	return errors.Join(err, q.answer(d, struct {
		Removed []lostAnswer `json:"removed"`
	}{list}, "removed\n"+text))
}

func (q *cacheRequest) sign(ctx context.Context, c *cache.Cache, pol *policy.Policy, d *desk) error {
	if err := knows(pol, q.Domain); err != nil {
		return err
	}
	if len(pol.DomainNamed(q.Domain).Signers()) == 0 {
		return fmt.Errorf("domain %s signs nothing: its policy has no signing_keys, or sign: none", q.Domain)
	}
	var done cache.SignProgress
	err := c.Resign(ctx, q.Domain, func(now cache.SignProgress) {
		done = now
		d.progress(fmt.Sprintf("looked at %s, signed %d of them", policy.CountOf(now.Seen, "path"), now.Signed))
	})
	return errors.Join(err, q.answer(d, struct {
		Seen   int64 `json:"seen"`
		Signed int64 `json:"signed"`
	}{done.Seen, done.Signed}, fmt.Sprintf("looked at %s, signed %d of them\n", policy.CountOf(done.Seen, "path"), done.Signed)))
}

// transferAnswer is how an import or an export ended, in JSON.
type transferAnswer struct {
	Paths     int64           `json:"paths"`
	Already   int64           `json:"already,omitempty"`
	Differing int64           `json:"differing,omitempty"`
	Bytes     int64           `json:"bytes"`
	LeftOut   []refusalAnswer `json:"left_out"`
}

type refusalAnswer struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

func refusalAnswers(all []cache.Refusal) ([]refusalAnswer, string) {
	list, text := []refusalAnswer{}, ""
	for _, r := range all {
		list = append(list, refusalAnswer(r))
		text += proxy.Printable(fmt.Sprintf("left out %s: %s", r.Path, r.Reason)) + "\n"
	}
	return list, text
}

func (q *cacheRequest) exports(ctx context.Context, c *cache.Cache, _ *policy.Policy, d *desk) error {
	sum, err := c.Export(ctx, q.Domain, q.paths, d.sink, func(x cache.Exported) {
		d.progress(fmt.Sprintf("exported %s, %s", policy.CountOf(x.Paths, "path"), upstream.Bytes(x.Bytes)))
	})
	left, leftText := refusalAnswers(sum.Refused)
	sayErr := q.answer(d, transferAnswer{Paths: sum.Paths, Bytes: sum.Bytes, LeftOut: left},
		leftText+fmt.Sprintf("exported %s, %s\n", policy.CountOf(sum.Paths, "path"), upstream.Bytes(sum.Bytes)))
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%s left out", policy.CountOf(len(left), "path"))
	}
	return errors.Join(err, sayErr)
}

func (q *cacheRequest) imports(ctx context.Context, c *cache.Cache, pol *policy.Policy, d *desk) error {
	if err := knows(pol, q.Domain); err != nil {
		return err
	}
	sum, err := c.Import(ctx, d.source, q.judge(pol), func(i cache.Imported) {
		d.progress(fmt.Sprintf("imported %s, %s", policy.CountOf(i.Added+i.Already+i.Differing, "path"), upstream.Bytes(i.Bytes)))
	})
	left, leftText := refusalAnswers(sum.Refused)
	text := fmt.Sprintf("imported %s, %s; %d already there", policy.CountOf(sum.Added, "path"), upstream.Bytes(sum.Bytes), sum.Already)
	if sum.Differing > 0 {
		text += fmt.Sprintf("; %d there with other bytes, which stay", sum.Differing)
	}
	sayErr := q.answer(d, transferAnswer{Paths: sum.Added, Already: sum.Already, Differing: sum.Differing, Bytes: sum.Bytes, LeftOut: left}, leftText+text+"\n")
	if err == nil && sum.Left > 0 {
		err = fmt.Errorf("%s left out", policy.CountOf(sum.Left, "path"))
	}
	return errors.Join(err, sayErr)
}

// judge says who vouches for a path that is imported: a trusted signature, its
// content address, which the cache verifies, or the admin who said so.
func (q *cacheRequest) judge(pol *policy.Policy) func(*nix.PathInfo) (*nix.PathInfo, cache.Grant, error) {
	return func(claimed *nix.PathInfo) (*nix.PathInfo, cache.Grant, error) {
		vouched := cache.Claimed
		if q.Vouch {
			vouched = cache.DomainVouched
		}
		info, grant := proxy.Believed(pol, q.Domain, claimed, vouched)
		if len(info.Sigs) == 0 && info.CA.IsZero() && !q.Vouch {
			return nil, grant, nix.Refuse("it has neither a signature by a trusted key nor a content address; --vouch takes it on your word")
		}
		return info, grant, nil
	}
}

func domainWord(name string) string {
	if name == "" {
		return "(public)"
	}
	return name
}

// dateText is a time in seconds since 1970 for people.
func dateText(seconds int64) string {
	if seconds == 0 {
		return "never"
	}
	return time.Unix(seconds, 0).Format("2006-01-02 15:04")
}

package policy

import (
	"slices"
	"strings"
	"testing"
)

// Guards against metrics that are served to other machines, or at all, without
// anybody having said so.
func TestMetricsAreForThisMachineUnlessTheFileSaysOtherwise(t *testing.T) {
	d := newDir(t)
	if pol := d.load(t, minimal); pol.Metrics != (Metrics{}) {
		t.Errorf("without a word: %+v", pol.Metrics)
	}
	for address, fits := range map[string]bool{
		"127.0.0.1:9822": true, "127.8.9.10:9822": true, "[::1]:9822": true, "localhost:9822": true, "[::ffff:127.0.0.1]:9822": true,
		":9822": false, "0.0.0.0:9822": false, "[::]:9822": false, "192.0.2.1:9822": false, "localhost.example.org:9822": false,
		"[::ffff:192.0.2.1]:9822": false, "128.0.0.1:9822": false,
	} {
		_, err := parse(d.path("policy.yaml"), []byte(minimal+"metrics: {listen: \""+address+"\"}\n"), realDisk{})
		if fits != (err == nil) {
			t.Errorf("%s: %v", address, err)
		}
		pol := d.load(t, minimal+"metrics: {listen: \""+address+"\", allow_remote: true}\n")
		if pol.Metrics.Listen != address || !pol.Metrics.AllowRemote {
			t.Errorf("%s with allow_remote: %+v", address, pol.Metrics)
		}
	}
}

// Guards against an admin who believes a change of the address to count at once, or
// who is not told whom the proxy answers.
func TestMetricsAreDescribedAndCountAfterARestart(t *testing.T) {
	d := newDir(t)
	off, on := d.load(t, minimal), d.load(t, minimal+"metrics: {listen: \"127.0.0.1:9822\"}\n")
	if got := off.NeedsRestart(on); !slices.Equal(got, []string{"metrics"}) {
		t.Errorf("needs a restart: %v", got)
	}
	open := d.load(t, minimal+"metrics: {listen: \"0.0.0.0:9822\", allow_remote: true}\n")
	for pol, want := range map[*Policy]string{
		off: "not served over HTTP", on: "on 127.0.0.1:9822, to everybody on this machine", open: "on 0.0.0.0:9822, to whoever reaches it",
	} {
		if got := describe(t, pol, "proxy"); !strings.Contains(got, want) {
			t.Errorf("%q is not in:\n%s", want, got)
		}
	}
}

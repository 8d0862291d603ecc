package console

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/penstock/penstock/tests/harness"
)

// A console whose NATS server is away says so on each page, and comes back by itself;
// one that never had it starts all the same.
// covers: design section 8
func TestConsoleWithoutBus(t *testing.T) {
	root := browser(t)
	nats := harness.StartNATS(t, t.TempDir())
	address := harness.FreeAddr(t)
	path := filepath.Join(t.TempDir(), "console.yaml")
	yaml := fmt.Sprintf("bus: {url: %q, disk: 1GiB}\nledger: {store: %q}\nconsole: {address: %q}\ntelemetry: {address: \"\", private_address: \"\"}\n", nats.URL(), t.TempDir(), address)
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errOut, code := harness.Run(t, nil, "topology", "apply", "--config", path); code != 0 {
		t.Fatalf("penstock topology apply ended with %d: %s", code, errOut)
	}
	nats.Kill()
	p := harness.Start(t, "console", nil, "console", "--config", path)
	b := newTab(t, root, "http://"+address)
	b.allow(503)
	b.allow(502)
	harness.Await(t, patience, "the console listens", func() bool {
		if !p.Running() {
			t.Fatalf("the console ended:\n%s", p.Log())
		}
		return reachable(address)
	})
	for _, page := range []string{"/pipeline", "/replays", "/quarantine", "/ledger", "/destinations", "/events", "/topology", "/audit"} {
		b.goTo(page)
		b.shows("main", "the bus does not answer")
		b.fits()
	}
	b.goTo("/quarantine")
	b.shot("console-outage-light-1280")
	nats.Restart()
	b.shows("main h1", "quarantine") // without a hand: the page tries again by itself
	b.shows("main", "is empty")
	b.lacks("main", "the bus does not answer")
}

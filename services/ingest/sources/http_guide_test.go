package sources

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/penstock/penstock/services/internal/config"
)

const httpGuide = "../../../docs/guides/http-receivers.md"

// blocks returns the parts of a page that are fenced as of a language.
func blocks(t *testing.T, path, language string) (all []string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(data), "\n```"+language+"\n")[1:] {
		text, _, _ := strings.Cut(part, "\n```")
		all = append(all, text)
	}
	return all
}

// guided is a source as it stands in a configuration.
type guided struct {
	// Name of the source.
	Name string `yaml:"name"`
	// Type of the source.
	Type string `yaml:"type"`
	// Options are the keys of the type.
	Options any `yaml:",kind"`
}

func (guided) Kinds() config.Kinds { return Catalog }

// The configuration of the guide is good, and its commands work against it.
func TestHTTPGuide(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("the commands of the guide need curl")
	}
	_ = curl
	secrets := map[string]string{"PENSTOCK_AGENTS_TOKEN": tokenA, "PENSTOCK_GITHUB_SECRET": "github-secret"}
	var file struct {
		Sources []guided `yaml:"sources"`
	}
	text := blocks(t, httpGuide, "yaml")[0]
	if err := config.Parse(httpGuide, []byte(text), &file, func(name string) (string, bool) { v, ok := secrets[name]; return v, ok }); err != nil {
		t.Fatal(err)
	}
	fromGuide, ok := file.Sources[0].Options.(*HTTPConfig)
	if !ok {
		t.Fatalf("options %T", file.Sources[0].Options)
	}
	r := listenHTTP(t, func(c *HTTPConfig, _ *Deps) {
		*c = *fromGuide
		c.Address, c.TLS = "127.0.0.1:0", HTTPTLS{}
	})
	commands := blocks(t, httpGuide, "sh")
	if len(commands) < 7 {
		t.Fatalf("%d commands", len(commands))
	}
	for _, command := range commands {
		before := len(r.rows())
		cmd := exec.CommandContext(t.Context(), "sh", "-euc", command)
		cmd.Env = append(os.Environ(), "PENSTOCK="+r.url, "TOKEN="+tokenA, "PENSTOCK_GITHUB_SECRET=github-secret")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s\n%v: %s", command, err, out)
		}
		stored := len(r.rows()) - before
		if !strings.Contains(string(out), `"accepted":`) && !strings.Contains(string(out), `"code":0`) && !strings.Contains(string(out), `"code":17`) {
			t.Errorf("%s\nanswers %s", command, out)
		}
		if (stored == 0) != strings.Contains(command, "/health") {
			t.Errorf("%s\nstored %d rows", command, stored)
		}
	}
	if n := len(r.bus.Quarantined()); n != 0 {
		t.Errorf("%d quarantined", n)
	}
	r.balance()
}

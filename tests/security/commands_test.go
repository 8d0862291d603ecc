package security

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/tests/harness"
)

// say runs a command and keeps all that it says.
func (e *evidence) say(t testing.TB, env []string, args ...string) (code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, harness.Binary(t), args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Errorf("penstock %s does not end", strings.Join(args, " "))
	} else if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	e.take("penstock "+strings.Join(args[:min(len(args), 3)], " "), append(out, '\n'))
	return cmd.ProcessState.ExitCode()
}

// What the commands say of a configuration, right or wrong in any way, shows no secret.
func TestCommandsShowNoSecret(t *testing.T) {
	takesLong(t)
	v, e, dir := &vault{}, &evidence{}, t.TempDir()
	makeCertificate(t, v, dir)
	hash := strings.Split(passwordHash, "$")
	v.add("password hash", hash[len(hash)-1])
	v.add("webhook secret", "Q255bm90YXJlYWxr")
	f := fill(t, v, everySecret, dir, "good", stage(t, dir, map[string]string{"bus": busSecret}))
	if code := e.say(t, f.env, "config", "check", f.path); code != 0 {
		t.Fatalf("the configuration is not good: %s", e.said["penstock config check "+f.path])
	}
	if code := e.say(t, f.env, "config", "show", f.path); code != 0 || !strings.Contains(string(e.said["penstock config show "+f.path]), "[redacted]") {
		t.Fatal("config show fails, or hides nothing")
	}
	e.say(t, f.env, "config", "check", "--json", f.path)
	e.say(t, nil, "config", "check", f.path) // no variable is set
	e.say(t, f.env, "doctor", "--config", f.path, "--timeout", "2s")
	e.say(t, f.env, "doctor", "--config", f.path, "--timeout", "2s", "--json")
	e.say(t, f.env, "status", "--config", f.path)
	e.say(t, f.env, "topology", "show", "--nats", "nats://u:"+v.plant("argument password")+"@127.0.0.1:1")
	e.say(t, f.env, "status", "--nats", v.plant("argument bare token")+"@127.0.0.1:1")
	e.say(t, nil, "health", "--url", "http://u:"+v.plant("health password")+"@127.0.0.1:1/readyz?token="+v.plant("health query"))
	e.say(t, []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://u:" + v.plant("otel password") + "@127.0.0.1:1", "OTEL_EXPORTER_OTLP_HEADERS=x=" + v.plant("otel header")},
		"doctor", "--config", f.path, "--timeout", "1s", "--source", "censor")

	// Mistakes of all sorts at the line of a secret, and secrets from a variable where no
	// secret belongs.
	for i, broken := range []struct{ name, old, fresh string }{
		{"unknown key", "password: <bus password>", "pasword: <bus password>"},
		{"list", "password: <bus password>", "password: [<bus password>]"},
		{"mapping", "token: <hec token>", "token: {value: <hec token>}"},
		{"secret for a duration", "wait_time: 1s", "wait_time: <variable duration>"},
		{"secret for a list", "products: [web]", "products: <variable list>"},
		{"secret for a number", "request_period_in_seconds: 300", "request_period_in_seconds: <variable number>"},
		{"secret for bytes", "disk: 256 MiB", "disk: <variable bytes>"},
		{"secret for an enum", "oversize: s3", "oversize: <variable enum>"},
		{"secret for a name", "{name: censor,", "{name: \"a b <variable name>\","},
		{"secret for a pattern", "types: [\">\"]", "types: [\"..<variable pattern>\"]"},
		{"secret for CEL", `{name: screen, type: stdout,`, `{name: screen, type: stdout, where: "event.<variable cel> +",`},
		{"user in the address", `url: "«far»/hook",`, `url: "http://u:<wrong user>@example.com/hook",`},
		{"address that is none", `url: "«far»/hook",`, `url: "http://[::1/hook?token=<wrong query>",`},
		{"no scheme", `url: "«far»/hook",`, `url: "example.com/hook?token=<wrong query>",`},
		{"header with a line break", "x-api-key: <otlp header>", `x-api-key: "a\nb<wrong header>"`},
		{"webhook secret", `"whsec_«webhook secret»"`, `"whsec_<wrong webhook>!"`},
		{"password hash", `"«password hash»"`, `"$argon2id$<wrong hash>"`},
		{"short mask", "key: <route mask>", "key: <route mask>\n    mask2: <wrong mask>"},
		{"no YAML", "    group_wait: 0s", "    group_wait: {<wrong yaml>}}"},
		{"tab", "    group_wait: 0s", "\tgroup_wait: <wrong tab>"},
		{"repeated", "password: <email password>", "password: <email password>\n    password: <wrong again>"},
		{"missing variable", "password: <email password>", "password: ${NOT_SET_ANYWHERE}<wrong rest>"},
		{"required", "password: <email password>", "password: ${NOT_SET:?<wrong words>}"},
	} {
		text := strings.Replace(everySecret, "«bus»", busSecret, 1)
		if !strings.Contains(text, broken.old) {
			t.Fatalf("%s: there is no %q", broken.name, broken.old)
		}
		name := fmt.Sprintf("broken%d", i)
		b := fill(t, v, strings.Replace(text, broken.old, broken.fresh, 1), dir, name, stage(t, dir, nil))
		for _, args := range [][]string{{"config", "check", b.path}, {"config", "check", "--json", b.path}, {"config", "show", b.path}, {"run", "--config", b.path}} {
			if code := e.say(t, b.env, args...); code != 2 {
				t.Errorf("%s: penstock %s ends with %d", broken.name, strings.Join(args[:2], " "), code)
			}
		}
	}
	// A file that is a secret and no configuration.
	bare := filepath.Join(dir, "bare")
	if err := os.WriteFile(bare, []byte(v.plant("a file that is a secret")), 0o600); err != nil {
		t.Fatal(err)
	}
	e.say(t, nil, "config", "check", bare)
	e.say(t, nil, "config", "import", "devo", bare)
	e.search(t, v)
}

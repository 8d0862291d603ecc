package main

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// noJSON are the commands that have nothing to print as JSON: they run until they are
// stopped, print a file, or ask for a secret.
var noJSON = map[string]string{
	"penstock run": "runs", "penstock demo-endpoint": "runs", "penstock console": "runs",
	"penstock config init": "prints a file of YAML", "penstock config import devo": "prints a file of YAML",
	"penstock config schema": "prints JSON", "penstock config show": "prints a file of YAML", "penstock console hash": "asks for a password",
	"penstock quarantine export": "writes NDJSON",
}

// covers: design section 8
func TestCommands(t *testing.T) {
	root := newRoot()
	for _, cmd := range append(commandsBelow(root), root) {
		path := cmd.CommandPath()
		t.Run(path, func(t *testing.T) {
			if r := []rune(cmd.Short); len(r) == 0 || !unicode.IsUpper(r[0]) || strings.HasSuffix(cmd.Short, ".") || len(r) > 110 {
				t.Errorf("Short is %q: want a sentence without a full stop, up to 110 characters", cmd.Short)
			}
			for line := range strings.Lines(cmd.Long) {
				if len([]rune(strings.TrimSpace(line))) > 100 {
					t.Errorf("a line of Long is too wide for a terminal: %q", line)
				}
			}
			cmd.Flags().VisitAll(func(f *pflag.Flag) {
				if f.Usage == "" || strings.HasSuffix(f.Usage, ".") {
					t.Errorf("--%s: usage is %q", f.Name, f.Usage)
				}
			})
			if !cmd.HasSubCommands() && cmd.Example == "" {
				t.Error("there is no example")
			}
			for line := range strings.Lines(strings.ReplaceAll(cmd.Example, "\\\n", " ")) {
				tryExample(t, line)
			}
			// Where there is a bus, it is named by the same flags everywhere.
			if cmd.Flags().Lookup("nats") != nil && cmd.Flags().Lookup("config") == nil || cmd.Flags().Lookup("store") != nil && cmd.Flags().Lookup("nats") == nil {
				t.Error("not all of --config, --nats and --store are there")
			}
			if _, ok := noJSON[path]; !cmd.HasSubCommands() && !ok {
				if f := cmd.Flags().Lookup("json"); f == nil || f.Value.Type() != "bool" {
					t.Error("there is no flag --json")
				}
			}
			// What is mistyped is exit code 2 everywhere, before anything is done.
			args := strings.Fields(path)[1:]
			if err := execute(append(slices.Clone(args), "--no-such-flag")...); exitCode(err) != exitUsage {
				t.Errorf("an unknown flag: exit code %d, %v", exitCode(err), err)
			}
			if cmd.HasSubCommands() && cmd != root {
				if err := execute(append(slices.Clone(args), "no-such-word")...); exitCode(err) != exitUsage {
					t.Errorf("an unknown command: exit code %d, %v", exitCode(err), err)
				}
			}
			if err := execute(append(slices.Clone(args), "--help")...); err != nil {
				t.Errorf("--help: %v", err)
			}
		})
	}
	for path := range noJSON {
		if cmd, _, err := root.Find(strings.Fields(path)[1:]); err != nil || cmd.CommandPath() != path {
			t.Errorf("there is no command %s any more", path)
		}
	}
}

// execute runs penstock with arguments, its output thrown away.
func execute(args ...string) error {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(discard{})
	root.SetErr(discard{})
	err := root.Execute()
	if err != nil && strings.HasPrefix(err.Error(), "unknown command") {
		err = usageError{err} // as main does
	}
	return err
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// tryExample parses what an example has penstock do: its commands, flags and arguments
// must be there. Other programs in the line are none of ours.
func tryExample(t *testing.T, line string) {
	t.Helper()
	words, err := shellWords(line)
	if err != nil {
		t.Errorf("example %q: %v", line, err)
		return
	}
	for i, w := range words {
		if w != "penstock" || i > 0 && !slices.Contains([]string{"|", "||", "&&", ";", "$("}, words[i-1]) {
			continue
		}
		args := words[i+1:]
		if end := slices.IndexFunc(args, func(w string) bool {
			return slices.Contains([]string{"|", "||", "&&", ";", ")", ">", "<", "&", "2>"}, w) || strings.HasPrefix(w, "> ")
		}); end >= 0 {
			args = args[:end]
		}
		root := newRoot()
		cmd, rest, err := root.Find(args)
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err == nil && cmd != root && cmd.Runnable() && !isComment(line) {
			err = cmd.ValidateArgs(cmd.Flags().Args())
		}
		if err != nil {
			t.Errorf("example %q: %v", strings.TrimSpace(line), err)
		}
	}
}

// isComment tells whether an example has words that explain it, far behind the command.
func isComment(line string) bool { return strings.Contains(strings.TrimSpace(line), "    ") }

// shellWords cuts a line as a shell does, as far as examples need it.
func shellWords(line string) (words []string, err error) {
	word, open, quote := "", false, rune(0)
	flush := func() {
		if open {
			words = append(words, word)
		}
		word, open = "", false
	}
	for _, r := range strings.TrimSpace(line) {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word += string(r)
		case r == '\'' || r == '"':
			quote, open = r, true
		case unicode.IsSpace(r):
			flush()
		case r == '|' || r == ';' || r == '>' || r == '<' || r == ')' || r == '&':
			if open && (word == "|" || word == "&") {
				word += string(r)
				continue
			}
			flush()
			word, open = string(r), true
			if r != '|' && r != '&' {
				flush()
			}
		case r == '(' && strings.HasSuffix(word, "$"):
			word, open = "$(", true
			flush()
		default:
			word, open = word+string(r), true
		}
	}
	if quote != 0 {
		return nil, errors.New("a quote does not end")
	}
	flush()
	return words, nil
}

// Names in every shell: cobra's own completion is there, and offers commands and flags
// without a bus, also where there is none.
func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out := completed(t, "completion", shell); !strings.Contains(out, "penstock") {
			t.Errorf("%s: %d bytes", shell, len(out))
		}
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{cobra.ShellCompRequestCmd, "quar"}, "quarantine"},
		{[]string{cobra.ShellCompRequestCmd, "run", "--stage", "de"}, "dedupe\n"},
		{[]string{cobra.ShellCompRequestCmd, "parse", "--format", "cloudt"}, "cloudtrail"},
		{[]string{cobra.ShellCompRequestCmd, "tail", "--store", "/nonexistent", "a"}, ":4"},
	} {
		if out := completed(t, tt.args...); !strings.Contains(out, tt.want) {
			t.Errorf("%v: %q, want %q", tt.args, out, tt.want)
		}
	}
}

func completed(t *testing.T, args ...string) string {
	t.Helper()
	var out strings.Builder
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(discard{})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

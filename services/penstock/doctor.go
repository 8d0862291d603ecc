package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/services/internal/probe"
	"github.com/penstock/penstock/topology"
)

// patient is one thing that the doctor looks at.
type patient struct {
	// Kind is bus, source or destination, Name the configured name.
	Kind     string          `json:"kind"`
	Name     string          `json:"name,omitempty"`
	Type     string          `json:"type,omitempty"`
	Findings []probe.Finding `json:"findings"`

	look func(context.Context) []probe.Finding
}

// diagnosis is what --json prints.
type diagnosis struct {
	// Worst is the worst level of all findings.
	Worst    probe.Level `json:"worst"`
	Patients []*patient  `json:"checked"`
}

type doctorOptions struct {
	config, source string
	json           bool
	timeout        time.Duration
}

// defaultTimeout is how long one of them may take.
const defaultTimeout = 30 * time.Second

func newDoctor() *cobra.Command {
	o := doctorOptions{config: "penstock.yaml", timeout: defaultTimeout}
	cmd := &cobra.Command{
		Use: "doctor", Args: exactly(0),
		Short: "Try every call that the configuration leads to, and name what is refused and the policy line to add",
		Long: `Tries the bus, each source and each destination: every call that is made when
penstock runs is made once, on the real queue, bucket, API and server. Nothing is
changed: a message that is received is given back at once, a file that is made is removed.

What is refused is named with the resource and with the statement to add to the
policy of the identity that penstock uses.

Exit codes: 0 all works, perhaps with warnings; 1 something does not; 2 the
configuration is wrong.`,
		Example: "  penstock doctor --config penstock.yaml\n  penstock doctor --config penstock.yaml --source trail --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			file, err := loadFile(o.config)
			if err != nil {
				return err
			}
			return runDoctor(cmd.Context(), cmd.OutOrStdout(), file, o)
		},
	}
	cmd.Flags().StringVarP(&o.config, "config", "c", o.config, "configuration file")
	cmd.Flags().StringVar(&o.source, "source", "", "look at this source only")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	cmd.Flags().DurationVar(&o.timeout, "timeout", o.timeout, "how long each of them may take")
	return cmd
}

func runDoctor(ctx context.Context, out io.Writer, file File, o doctorOptions) error {
	patients, err := patientsOf(file, o.source)
	if err != nil {
		return err
	}
	// Side by side: most of the time is spent waiting for what does not answer.
	var wg sync.WaitGroup
	for _, p := range patients {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, o.timeout)
			defer cancel()
			p.Findings = p.look(ctx)
		})
	}
	wg.Wait()
	d := diagnosis{Worst: probe.OK, Patients: patients}
	for _, p := range patients {
		for _, f := range p.Findings {
			if f.Level == probe.Fail || f.Level == probe.Warn && d.Worst == probe.OK {
				d.Worst = f.Level
			}
		}
	}
	if o.json {
		err = writeJSON(out, d)
	} else {
		err = d.print(out)
	}
	if err == nil && d.Worst == probe.Fail {
		return errSilent
	}
	return err
}

// patientsOf are all that a configuration names, or one source of it.
func patientsOf(file File, only string) ([]*patient, error) {
	var patients []*patient
	for _, s := range file.Sources {
		if only == "" || s.Name == only {
			patients = append(patients, &patient{Kind: "source", Name: s.Name, Type: s.Type, look: lookAt(s.Options)})
		}
	}
	if only != "" {
		if len(patients) == 0 {
			return nil, usageError{fmt.Errorf("--source %s: the configuration has no source of that name", only)}
		}
		return patients, nil
	}
	bus := &patient{Kind: "bus", look: func(ctx context.Context) []probe.Finding { return lookAtBus(ctx, file) }}
	patients = append([]*patient{bus}, patients...)
	for _, d := range file.Destinations {
		patients = append(patients, &patient{Kind: "destination", Name: d.Name, Type: d.Type, look: lookAt(d.Options)})
	}
	return patients, nil
}

func lookAt(options any) func(context.Context) []probe.Finding {
	prober, ok := options.(probe.Prober)
	if !ok {
		return func(context.Context) []probe.Finding {
			return []probe.Finding{probe.Doubt("probe", "", "this kind cannot be tried; its configuration is well formed", "")}
		}
	}
	return prober.Probe
}

// lookAtBus connects to the servers and compares the streams, or looks at the
// folder of the server inside.
func lookAtBus(ctx context.Context, file File) []probe.Finding {
	if file.Bus.URL == "" {
		return lookAtStore(ctx, file)
	}
	return lookAtServers(ctx, file)
}

func lookAtServers(ctx context.Context, file File) []probe.Finding {
	bus, err := topology.Connect(ctx, file.Bus.options(fmt.Sprintf("penstock-doctor-%d", os.Getpid()), slog.New(slog.DiscardHandler)))
	if err != nil {
		return []probe.Finding{probe.Error("connect", "bus.url", err)}
	}
	defer bus.Close()
	all := []probe.Finding{probe.Good("connect", "bus.url", "messages up to "+size(uint64(max(0, bus.MaxPayload()))))}
	diffs, err := bus.Diff(ctx, file.Bus.limits(file.Dedupe.Lanes))
	if err != nil {
		return append(all, probe.Error("streams", "", err))
	}
	const apply = "penstock topology apply, or start penstock: it does so itself"
	absent, lanes := 0, false
	for _, d := range diffs {
		if d.Field == "stream" {
			absent++
		}
		lanes = lanes || d.Field == "lanes"
	}
	switch {
	case lanes:
		all = append(all, probe.Bad("streams", "", "they were made with another number of dedupe lanes", "set dedupe.lanes to what they were made with"))
	case absent > 0:
		all = append(all, probe.Doubt("streams", "", fmt.Sprintf("%d of %d are not there yet", absent, len(topology.Flow)), apply))
	case len(diffs) > 0:
		all = append(all, probe.Doubt("streams", "", fmt.Sprintf("%d settings differ from the configuration: penstock topology diff", len(diffs)), apply))
	default:
		all = append(all, probe.Good("streams", "", fmt.Sprintf("all %d are as configured", len(topology.Flow))))
	}
	if bus.MaxPayload() < leastPayload {
		all = append(all, probe.Doubt("max_payload", "", "the server takes "+size(uint64(max(0, bus.MaxPayload())))+" a message",
			"set max_payload: 8MB in the server's configuration, see deploy/nats.conf: larger records go to quarantine"))
	}
	return all
}

// leastPayload is below what the shipped configuration of NATS allows.
const leastPayload = 2 << 20

func lookAtStore(ctx context.Context, file File) []probe.Finding {
	access, err := os.ReadFile(filepath.Join(file.Bus.Store, topology.AccessFile))
	if err == nil {
		running := file
		running.Bus.URL = strings.TrimSpace(string(access))
		running.Dedupe.Lanes = file.Bus.limits(file.Dedupe.Lanes).Lanes
		quick, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		if all := lookAtServers(quick, running); all[0].Level == probe.OK {
			all[0].Resource, all[0].Detail = file.Bus.Store, "penstock runs with the server inside"
			return all
		}
	}
	folder := file.Bus.Store
	for {
		if _, err = os.Stat(folder); !errors.Is(err, os.ErrNotExist) || folder == filepath.Dir(folder) {
			break
		}
		folder = filepath.Dir(folder)
	}
	f, err := os.CreateTemp(folder, ".penstock-doctor-*")
	if err != nil {
		return []probe.Finding{probe.Bad("bus.store", file.Bus.Store, err.Error(), "let the user that penstock runs as write there, or choose another folder")}
	}
	_ = f.Close()
	_ = os.Remove(f.Name())
	return []probe.Finding{probe.Good("bus.store", file.Bus.Store, "can be written; no penstock runs on it")}
}

// print writes a table, with what to do below each finding that is not ok.
func (d diagnosis) print(out io.Writer) error {
	count := map[probe.Level]int{}
	for i, p := range d.Patients {
		if i > 0 {
			fmt.Fprintln(out)
		}
		head := p.Kind
		if p.Name != "" {
			head += " " + p.Name + " (" + p.Type + ")"
		}
		fmt.Fprintln(out, head)
		t := table(out)
		for _, f := range p.Findings {
			count[f.Level]++
			fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", mark(f.Level), f.Check, f.Resource, oneLine(f))
		}
		if err := t.Flush(); err != nil {
			return err
		}
		for _, f := range p.Findings {
			if f.Level == probe.OK || f.Fix == "" && f.Policy == nil {
				continue
			}
			fmt.Fprintf(out, "       %s: %s\n", f.Check, f.Fix)
			if f.Policy != nil {
				fmt.Fprintf(out, "         add to the policy: %s\n", f.Policy)
			}
		}
	}
	_, err := fmt.Fprintf(out, "\n%d ok, %d to look at, %d not working\n", count[probe.OK], count[probe.Warn], count[probe.Fail])
	return err
}

func mark(l probe.Level) string {
	return map[probe.Level]string{probe.OK: "ok", probe.Warn: "WARN", probe.Fail: "FAIL"}[l]
}

func oneLine(f probe.Finding) string {
	if f.Code != "" {
		return f.Detail + " [" + f.Code + "]"
	}
	return f.Detail
}

package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/penstock/penstock/services/console"
	"github.com/penstock/penstock/services/dedupe"
	"github.com/penstock/penstock/services/deliver"
	"github.com/penstock/penstock/services/fetch"
	"github.com/penstock/penstock/services/ingest/sources"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/tag"
	"github.com/penstock/penstock/services/internal/telemetry"
	"github.com/penstock/penstock/services/operate/freshness"
	"github.com/penstock/penstock/services/parse"
	"github.com/penstock/penstock/services/parse/formats"
	"github.com/penstock/penstock/services/route"
	"github.com/penstock/penstock/topology"
)

// File is the configuration file, put together from what each stage needs.
type File struct {
	// Bus is the NATS server that carries everything, inside this process or
	// elsewhere.
	Bus Bus `yaml:"bus"`
	// Sources are what is read.
	Sources []Source `yaml:"sources"`
	// Fetch reads the objects that notifications name.
	Fetch fetch.Config `yaml:"fetch"`
	// Parse turns records into events.
	Parse parse.Config `yaml:"parse"`
	// Dedupe lets each event pass once.
	Dedupe dedupe.Config `yaml:"dedupe"`
	// Routes are rules that drop, sample or mask events, in order.
	Routes []route.Rule `yaml:"routes"`
	// Destinations are what events are delivered to, each at its own pace.
	Destinations []deliver.Destination `yaml:"destinations"`
	// Ledger keeps the books of every object and message, where an operator's process
	// runs: in penstock run without a stage, and in penstock console.
	Ledger Ledger `yaml:"ledger"`
	// Console is the pages in which people watch the pipeline and operate it.
	Console console.Config `yaml:"console"`
	// Telemetry is how penstock itself is watched.
	Telemetry telemetry.Config `yaml:"telemetry"`
}

// Bus configures the NATS server.
type Bus struct {
	// URL of NATS servers, separated by commas. Empty: a server inside this process.
	URL string `yaml:"url"`
	// User of the NATS servers. The name of a role of penstock topology users decides
	// on which subjects answers come; give it with a certificate, too.
	User string `yaml:"user"`
	// InboxPrefix is what the subjects of answers begin with, for users of other names
	// who may not subscribe to _INBOX.
	InboxPrefix string `yaml:"inbox_prefix"`
	// Password of the user.
	Password config.Secret `yaml:"password"`
	// Token of the NATS servers, instead of user and password.
	Token config.Secret `yaml:"token"`
	// CredsFile is a NATS credentials file, instead of user and password.
	CredsFile string `yaml:"creds_file"`
	// CAFile holds the certificates to trust, as PEM.
	CAFile string `yaml:"ca_file"`
	// CertFile is the client's certificate, as PEM.
	CertFile string `yaml:"cert_file"`
	// KeyFile is the key of the certificate, as PEM.
	KeyFile string `yaml:"key_file"`
	// Store is the folder of the server inside this process.
	Store string `yaml:"store"`
	// Listen is the address of the server inside this process, host:port on a
	// loopback interface; port 0 takes a free one.
	Listen string `yaml:"listen"`
	// SyncInterval relaxes the server inside this process: 0s writes to disk
	// before it confirms, a longer one risks what came since on a power cut.
	// Unit: duration.
	SyncInterval time.Duration `yaml:"sync_interval"`
	// Disk is the budget of all streams together; when it is full penstock stops
	// reading its sources. Unit: bytes, at least 64 MiB.
	Disk config.Bytes `yaml:"disk"`
	// Replicas of each stream in a NATS cluster: 1, 3 or 5.
	Replicas int `yaml:"replicas"`
	// Keep is how long streams keep history, by stream name, e.g. EVENTS: 72h. What
	// is not delivered yet is kept however old. Unit: duration.
	Keep map[string]time.Duration `yaml:"keep"`
	// PublishWindow bounds what each stage has published and not yet had
	// confirmed; a larger message goes alone. Unit: bytes, at least 1 MiB.
	PublishWindow config.Bytes `yaml:"publish_window"`
	// AckWait is how soon a message is delivered again when its reader shows no
	// sign of life. Unit: duration.
	AckWait time.Duration `yaml:"ack_wait"`
	// GiveUpAfter is how old a message must be before it is quarantined for
	// errors that may pass. What destinations do not take never is: see max_backlog. Unit: duration.
	GiveUpAfter time.Duration `yaml:"give_up_after"`
	// DrainTimeout is how long a stop waits for work in hand. Unit: duration.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
}

// Validate reports every problem, each with the key to change.
func (b Bus) Validate() error {
	var p config.Problems
	p.Need(b.URL != "" || b.Store != "", "store", "name a folder for the streams, e.g. /var/lib/penstock")
	host, _, err := net.SplitHostPort(b.Listen)
	ip := net.ParseIP(host)
	p.Need(err == nil && (host == "localhost" || ip != nil && ip.IsLoopback()), "listen",
		"use a loopback address, e.g. 127.0.0.1:4222: a server that others reach is a server of its own, see bus.url")
	p.Need(b.Disk >= 64*config.MiB, "disk", "use 64 MiB or more")
	p.Need(b.Replicas == 1 || b.Replicas == 3 || b.Replicas == 5, "replicas", "use 1, 3 or 5")
	p.Need(b.Replicas == 1 || b.URL != "", "replicas", "use 1 with the server inside the process, or set url to a cluster")
	p.Need(b.PublishWindow >= config.MiB, "publish_window", "use 1 MiB or more")
	p.Need(b.AckWait >= time.Second, "ack_wait", "use 1s or more")
	p.Need(b.GiveUpAfter >= time.Minute, "give_up_after", "use 1m or more")
	p.Need(b.DrainTimeout > 0, "drain_timeout", "use a positive duration, e.g. 10s")
	p.Need(b.SyncInterval >= 0, "sync_interval", "use 0s for always, or a positive duration")
	p.Need(!strings.ContainsAny(b.InboxPrefix, " *>") && !strings.HasSuffix(b.InboxPrefix, "."), "inbox_prefix", "use a subject without wildcards, e.g. _INBOX_mine")
	p.Need((b.CertFile == "") == (b.KeyFile == ""), "key_file", "set cert_file and key_file together")
	known := map[string]bool{}
	for _, s := range topology.Flow {
		known[s.Name] = true
	}
	for name, keep := range b.Keep {
		p.Need(known[name], "keep."+name, "use the name of a stream: NOTICES, RECORDS, PARSED, UNIQUE, EVENTS, SEEN, QUARANTINE, LEDGER or AUDIT")
		p.Need(keep > 0, "keep."+name, "use a positive duration, e.g. 72h")
	}
	return p.Err()
}

// limits of the streams. A server inside the process has one replica of dedupe
// beside it, which needs no second lane; elsewhere replicas may come.
func (b Bus) limits(lanes uint32) topology.Limits {
	if lanes == 0 && b.URL == "" {
		lanes = 1
	}
	return topology.Limits{Disk: int64(b.Disk), Replicas: b.Replicas, Lanes: lanes, Keep: b.Keep}
}

// Source configures one source.
type Source struct {
	// Name of the source: letters, digits, - and _. It becomes a part of subjects,
	// metrics and each event's origin. Required.
	Name string `yaml:"name"`
	// Type selects the kind of source. Required.
	Type string `yaml:"type"`
	// Format of the records: a name, or a mapping with type and options. auto finds
	// it by the object's key and its first bytes.
	Format formats.Setting `yaml:"format"`
	// Silence is for how long the source may bring nothing before that is an alarm: a
	// duration, e.g. 45m, off, or auto, which learns it from its usual gaps.
	Silence string `yaml:"silence"`
	// Tag names the tables that the events land in.
	Tag tag.Config `yaml:",inline"`
	// Options are the keys of the kind.
	Options any `yaml:",kind"`
}

// Kinds implements config.Kinded.
func (Source) Kinds() config.Kinds { return sources.Catalog }

// SetDefaults implements config.Defaulter.
func (s *Source) SetDefaults() { s.Format.Type, s.Silence = formats.Auto, freshness.Auto }

var nameForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// Validate reports every problem, each with the key to change.
func (s Source) Validate() error {
	var p config.Problems
	p.Need(nameForm.MatchString(s.Name), "name", "use 1 to 64 letters, digits, - and _")
	p.Need(freshness.IsSetting(s.Silence), "silence", "use auto, off, or a duration of 1s or more, e.g. 45m")
	for name, m := range s.Tag.EventTypeProcessorMapping {
		p.Need(m.Format == "" || formats.Known(m.Format), "event_type_processor_mapping."+name+".format", "use one of: "+strings.Join(formats.Names(), ", "))
	}
	if receiver, ok := s.Options.(*sources.HTTPConfig); ok {
		for i, e := range receiver.Endpoints {
			p.Need(e.Format == "" || e.Format == formats.Auto || formats.Known(e.Format), fmt.Sprintf("endpoints[%d].format", i),
				"use auto or one of: "+strings.Join(formats.Names(), ", "))
		}
	}
	return p.Err()
}

// Validate reports every problem, each with the key to change.
func (f File) Validate() error {
	var p config.Problems
	names := map[string]bool{}
	for i, s := range f.Sources {
		p.Need(!names[s.Name] || s.Name == "", fmt.Sprintf("sources[%d].name", i), "give each source a name of its own")
		names[s.Name] = true
		if listing, ok := s.Options.(*sources.S3Config); ok {
			// What a listing forgot it announces again, and only dedupe knows it then.
			p.Need(listing.LookBack < f.Dedupe.Window, fmt.Sprintf("sources[%d].look_back", i), "use less than dedupe.window, "+f.Dedupe.Window.String())
		}
	}
	names = map[string]bool{}
	for i, r := range f.Routes {
		p.Need(!names[r.Name] || r.Name == "", fmt.Sprintf("routes[%d].name", i), "give each rule a name of its own")
		names[r.Name] = true
	}
	names = map[string]bool{}
	for i, d := range f.Destinations {
		p.Need(!names[d.Name] || d.Name == "", fmt.Sprintf("destinations[%d].name", i), "give each destination a name of its own")
		names[d.Name] = true
	}
	return p.Err()
}

// Ledger configures the books.
type Ledger struct {
	// Store is the folder of the database. Empty: ledger in bus.store.
	Store string `yaml:"store"`
	// Keep is how long the books know a pull after the last that was heard of it. Unit:
	// duration.
	Keep time.Duration `yaml:"keep"`
	// Disk bounds the database; the oldest pulls go first. Unit: bytes, at least 16 MiB.
	Disk config.Bytes `yaml:"disk"`
}

// Validate reports every problem, each with the key to change.
func (l Ledger) Validate() error {
	var p config.Problems
	p.Need(l.Keep >= time.Hour, "keep", "use 1h or more, e.g. 2160h")
	p.Need(l.Disk >= 16*config.MiB, "disk", "use 16 MiB or more")
	return p.Err()
}

// ledgerFolder is the folder of the database.
func (f File) ledgerFolder() string {
	if f.Ledger.Store != "" {
		return f.Ledger.Store
	}
	return filepath.Join(f.Bus.Store, "ledger")
}

func defaults() File {
	return File{
		Bus: Bus{
			Store: "penstock-data", Listen: "127.0.0.1:0", Disk: 16 * config.GiB, Replicas: 1,
			PublishWindow: 4 * config.MiB, AckWait: 30 * time.Second, GiveUpAfter: 6 * time.Hour, DrainTimeout: 10 * time.Second,
		},
		Fetch: fetch.Defaults(), Parse: parse.Defaults(), Dedupe: dedupe.Defaults(), Console: console.Defaults(), Telemetry: telemetry.Defaults(),
		Ledger: Ledger{Keep: 90 * 24 * time.Hour, Disk: config.GiB},
	}
}

// loadFile reads the configuration file. Relative paths in it are relative to
// where penstock was started, as in other programs.
func loadFile(path string) (File, error) {
	f := defaults()
	if _, err := os.Stat(path); err != nil {
		return f, usageError{fmt.Errorf("configuration file %s: %w; write one with: penstock config init > %s", path, err, filepath.Base(path))}
	}
	if err := config.Load(path, &f, os.LookupEnv); err != nil {
		return f, err
	}
	return f, f.Bus.fromEnvironment(os.LookupEnv)
}

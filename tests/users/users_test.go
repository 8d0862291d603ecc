// Package users holds the users that penstock topology users writes to their word: a real
// NATS server reads them, and every role may do its work and nothing else.
package users

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

func TestMain(m *testing.M) { harness.Main(m) }

// bus is a NATS server that reads the users which penstock has written.
type bus struct {
	t    *testing.T
	dir  string
	addr string
	*server.Server
	log *journal
}

// journal gathers what a server says of refusals.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(format string, v ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf(format, v...))
}

func (j *journal) Noticef(string, ...any)         {}
func (j *journal) Warnf(format string, v ...any)  { j.add(format, v...) }
func (j *journal) Fatalf(format string, v ...any) { j.add(format, v...) }
func (j *journal) Errorf(format string, v ...any) { j.add(format, v...) }
func (j *journal) Debugf(string, ...any)          {}
func (j *journal) Tracef(string, ...any)          {}
func (j *journal) violations() (found []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, l := range j.lines {
		if strings.Contains(l, "Violation") {
			found = append(found, l)
		}
	}
	return found
}

// writeUsers has penstock write users into the folder of a bus.
func (b *bus) writeUsers(args ...string) string {
	b.t.Helper()
	out, errOut, code := harness.Run(b.t, nil, append([]string{"topology", "users", "--dir", filepath.Join(b.dir, "users")}, args...)...)
	if code != 0 {
		b.t.Fatalf("penstock topology users ended with %d: %s%s", code, out, errOut)
	}
	return out
}

// start starts a server whose configuration has more lines.
func start(t *testing.T, lines string, args ...string) *bus {
	t.Helper()
	b := &bus{t: t, dir: t.TempDir(), addr: harness.FreeAddr(t), log: &journal{}}
	b.writeUsers(args...)
	conf := fmt.Sprintf("listen: %q\nmax_payload: 8MB\nmax_pending: 128MB\ninclude \"users/nats/users.conf\"\n%s", b.addr, strings.ReplaceAll(lines, "DIR", b.dir))
	path := filepath.Join(b.dir, "nats.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := server.ProcessConfigFile(path)
	if err != nil {
		t.Fatal(err)
	}
	o.NoSigs = true
	if b.Server, err = server.NewServer(o); err != nil {
		t.Fatal(err)
	}
	b.SetLoggerV2(b.log, false, false, false)
	b.Start()
	t.Cleanup(func() { b.Shutdown(); b.WaitForShutdown() })
	if !b.ReadyForConnections(30 * time.Second) {
		t.Fatalf("the server is not ready: %v", b.log.lines)
	}
	return b
}

const withStreams = "jetstream { store_dir: \"DIR/streams\", max_file_store: 32GB, max_memory_store: 64MB }\n"

func (b *bus) password(r topology.Role) string {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(b.dir, "users", string(r), "password"))
	if err != nil {
		b.t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func (b *bus) url(r topology.Role) string {
	return fmt.Sprintf("nats://%s:%s@%s", r, b.password(r), b.addr)
}

// as is the environment of a process with a role.
func (b *bus) as(r topology.Role) []string {
	return []string{"PENSTOCK_BUS_USER=" + string(r), "PENSTOCK_BUS_PASSWORD_FILE=" + filepath.Join(b.dir, "users", string(r), "password")}
}

// attacker is a client with the credentials of a role, and nothing of penstock.
type attacker struct {
	t    *testing.T
	nc   *nats.Conn
	mu   sync.Mutex
	said []string
}

func (b *bus) attack(r topology.Role) *attacker {
	b.t.Helper()
	return b.connect(r, "nats://"+b.addr, nats.UserInfo(string(r), b.password(r)))
}

// connect is attack without a password.
func (b *bus) connect(r topology.Role, url string, options ...nats.Option) *attacker {
	b.t.Helper()
	a := &attacker{t: b.t}
	nc, err := nats.Connect(url, append([]nats.Option{
		nats.CustomInboxPrefix(r.Inbox()),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.said = append(a.said, err.Error())
		}),
	}, options...)...)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(nc.Close)
	a.nc = nc
	return a
}

// barrier is refused to everybody: once its refusal is heard, all before it are.
var barrier atomic.Int64

// refused returns which of some subjects the server does not let the role publish to, or
// subscribe to.
func (a *attacker) refused(verb string, subjects ...string) map[string]bool {
	a.t.Helper()
	a.mu.Lock()
	a.said = nil
	a.mu.Unlock()
	for _, s := range subjects {
		var err error
		if verb == "Publish" {
			err = a.nc.Publish(s, []byte("{}"))
		} else {
			_, err = a.nc.SubscribeSync(s)
		}
		if err != nil {
			a.t.Fatalf("%s of %s: %v", verb, s, err)
		}
	}
	last := fmt.Sprintf("forbidden.barrier.%d", barrier.Add(1))
	if err := a.nc.Publish(last, nil); err != nil {
		a.t.Fatal(err)
	}
	found := map[string]bool{}
	harness.Await(a.t, 30*time.Second, "the server refuses what it refuses to all", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return slices.ContainsFunc(a.said, func(s string) bool { return strings.Contains(s, last) })
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range subjects {
		for _, said := range a.said {
			if strings.Contains(said, `"`+s+`"`) && strings.Contains(said, verbOf(verb)) {
				found[s] = true
			}
		}
	}
	return found
}

func verbOf(verb string) string {
	if verb == "Subscribe" {
		return "Subscription"
	}
	return verb
}

// Roles that write or read a stream beside those that the flow names, and why. What is
// not here nor in the flow is refused.
var (
	alsoWrite = map[string][]topology.Role{
		topology.Notices:    {topology.RoleOperate}, // redrives
		topology.Records:    {topology.RoleOperate}, // redrives, and records that are parsed again
		topology.Parsed:     {topology.RoleOperate}, // redrives
		topology.Quarantine: {topology.RoleOperate},
		topology.Ledger:     {topology.RoleOperate},                      // what was resolved
		topology.Audit:      {topology.RoleOperate, "ingest", "deliver"}, // how jobs end
	}
	alsoRead = map[string][]topology.Role{
		topology.Unique:     {"dedupe"},                      // a lane reads back what it put out
		topology.Records:    {topology.RoleOperate},          // to parse them again
		topology.Events:     {topology.RoleOperate, "route"}, // the log is searched; route looks for what it stored
		topology.Quarantine: {topology.RoleOperate},
		topology.Ledger:     {topology.RoleOperate},
		topology.Audit:      {topology.RoleOperate},
	}
	// keepers trim a stream that no stage reads.
	operateKeeps = []string{topology.Quarantine, topology.Ledger, topology.Audit}
	// deletes are who may remove single messages.
	deletes = map[string]topology.Role{topology.Quarantine: topology.RoleOperate}
)

// durables are the consumers that stand for the place of somebody in a stream.
var durables = []topology.Consumer{
	topology.FetchConsumer, topology.ParseConsumer, topology.RouteConsumer,
	topology.DeliverConsumer("web", nil, topology.Start{}), topology.ReplayConsumer("job", "web", nil, topology.Start{}),
}

func stagesAs(stages []topology.Stage) (roles []topology.Role) {
	for _, s := range stages {
		roles = append(roles, topology.Role(s))
	}
	return roles
}

// A row of the matrix: subjects, and who may publish to them.
type row struct {
	what     string
	subjects []string
	who      []topology.Role
	// all: each of who may publish to every subject, else at least to one.
	all bool
}

// literal makes a subject of a pattern.
func literal(pattern string) string {
	return strings.NewReplacer(">", "x", "*", "x").Replace(pattern)
}

func matrix() (rows []row) {
	for _, s := range topology.Flow {
		writers := append(stagesAs(s.From), alsoWrite[s.Name]...)
		for _, pattern := range s.Subjects {
			switch {
			case len(s.From) == len(topology.Stages): // each stage has a part of its own
				for _, stage := range topology.Stages {
					who := append([]topology.Role{topology.Role(stage)}, alsoWrite[s.Name]...)
					subjects := []string{topology.QuarantineSubject(stage, "x")}
					if s.Name == topology.Ledger {
						subjects = []string{topology.LedgerSubject(stage)}
					}
					rows = append(rows, row{"write what " + string(stage) + " tells " + s.Name, subjects, who, true})
				}
			case strings.HasPrefix(pattern, "penstock.again."):
				rows = append(rows, row{"write " + pattern, []string{literal(pattern)}, append(slices.Clone(writers), topology.RoleOperate), true})
			default:
				rows = append(rows, row{"write " + s.Name, []string{literal(pattern)}, writers, true})
			}
		}
		readers := append(stagesAs(s.To), alsoRead[s.Name]...)
		subject := literal(s.Subjects[0])
		api := "$JS.API."
		rows = append(rows, row{what: "read " + s.Name, who: readers, subjects: []string{
			api + "CONSUMER.CREATE." + s.Name + ".mine", api + "CONSUMER.CREATE." + s.Name + ".mine." + subject, api + "CONSUMER.CREATE." + s.Name + ".mine." + s.Subjects[0],
			api + "CONSUMER.CREATE." + s.Name, api + "CONSUMER.DURABLE.CREATE." + s.Name + ".mine",
			api + "CONSUMER.MSG.NEXT." + s.Name + ".mine", api + "DIRECT.GET." + s.Name, api + "DIRECT.GET." + s.Name + "." + subject, api + "STREAM.MSG.GET." + s.Name,
			api + "STREAM.SNAPSHOT." + s.Name, api + "CONSUMER.UNPIN." + s.Name + ".mine", api + "CONSUMER.PAUSE." + s.Name + ".mine",
		}})
		for _, verb := range []string{"STREAM.DELETE.", "STREAM.SNAPSHOT.", "STREAM.RESTORE.", "STREAM.LEADER.STEPDOWN.", "STREAM.PEER.REMOVE.", "CONSUMER.NAMES.", "CONSUMER.DURABLE.CREATE."} {
			rows = append(rows, row{"manage " + s.Name, []string{api + verb + s.Name, api + verb + s.Name + ".x"}, nil, true})
		}
		rows = append(rows, row{"manage " + s.Name, []string{api + "STREAM.CREATE." + s.Name, api + "STREAM.UPDATE." + s.Name}, []topology.Role{topology.RoleAdmin}, true})
		keeper := []topology.Role{topology.RoleOperate}
		if !slices.Contains(operateKeeps, s.Name) {
			keeper = stagesAs(s.To[:1])
		}
		rows = append(rows, row{"trim " + s.Name, []string{api + "STREAM.PURGE." + s.Name}, keeper, true})
		var may []topology.Role
		if r := deletes[s.Name]; r != "" {
			may = append(may, r)
		}
		rows = append(rows, row{"delete from " + s.Name, []string{api + "STREAM.MSG.DELETE." + s.Name}, may, true})
	}
	for _, c := range durables {
		at := c.Stream + "." + c.Durable
		who := []topology.Role{topology.Role(c.Stage)}
		if c.Stream == topology.Events {
			who = append(who, topology.RoleOperate) // readers of destinations are removed, and replays done by commands
		}
		rows = append(rows,
			row{"take from " + at, []string{"$JS.API.CONSUMER.MSG.NEXT." + at}, who, true},
			row{"acknowledge for " + at, []string{"$JS.ACK." + at + ".1.2.3.4.5", "$JS.ACK.hub.ACCOUNT." + at + ".1.2.3.4.5"}, who, true})
		var making, removing []topology.Role
		if c.Stream == topology.Events {
			making, removing = who, who
		} else {
			making = []topology.Role{topology.RoleAdmin}
		}
		rows = append(rows,
			row{"make " + at, []string{"$JS.API.CONSUMER.CREATE." + at}, making, true},
			row{"remove " + at, []string{"$JS.API.CONSUMER.DELETE." + at}, removing, true})
	}
	return append(rows, keys()...)
}

// keys of the buckets, and who writes them.
func keys() (rows []row) {
	operate, ingest, dedupe, deliver := topology.RoleOperate, topology.Role("ingest"), topology.Role("dedupe"), topology.Role("deliver")
	for _, k := range []struct {
		bucket, key string
		write, read []topology.Role
	}{
		{"leases", "lane.3", []topology.Role{dedupe}, []topology.Role{dedupe, "route", ingest, deliver, operate}},
		{"leases", "lane.member.x", []topology.Role{dedupe}, []topology.Role{dedupe}},
		{"leases", "share.poll.x", []topology.Role{ingest}, []topology.Role{ingest}},
		{"leases", "keeper.streams", nil, nil},
		{"cursors", "trail.x", []topology.Role{ingest}, []topology.Role{ingest}},
		{"cursors", "penstock.freshness", []topology.Role{operate}, []topology.Role{operate}},
		{"budgets", "x", []topology.Role{ingest}, []topology.Role{ingest}},
		{"control", "destination.web", []topology.Role{operate}, []topology.Role{operate, deliver}},
		{"consumers", "web.x", []topology.Role{operate, deliver}, []topology.Role{operate, deliver}},
		{"jobs", "x", []topology.Role{operate, ingest, deliver}, []topology.Role{operate, ingest, deliver}},
		{"reports", "x.0000", []topology.Role{operate, ingest}, []topology.Role{operate, ingest}},
	} {
		b := "penstock_" + k.bucket
		rows = append(rows,
			row{"write key " + k.key + " of " + b, []string{"$KV." + b + "." + k.key}, k.write, true},
			row{"read key " + k.key + " of " + b, []string{"$JS.API.DIRECT.GET.KV_" + b + ".$KV." + b + "." + k.key}, k.read, true})
	}
	for _, s := range topology.Flow {
		if slices.Contains(operateKeeps, s.Name) {
			rows = append(rows, row{"lease of " + s.Name, []string{"$KV.penstock_leases.keeper." + s.Name}, []topology.Role{operate}, true})
		} else {
			rows = append(rows, row{"lease of " + s.Name, []string{"$KV.penstock_leases.keeper." + s.Name}, stagesAs(s.To[:1]), true})
		}
	}
	for _, b := range []string{"leases", "cursors", "budgets", "control", "consumers", "jobs", "reports"} {
		kv := "KV_penstock_" + b
		rows = append(rows, row{"manage bucket " + b, []string{
			"$JS.API.STREAM.DELETE." + kv, "$JS.API.STREAM.PURGE." + kv, "$JS.API.STREAM.MSG.DELETE." + kv, "$JS.API.STREAM.SNAPSHOT." + kv,
			"$JS.API.CONSUMER.DURABLE.CREATE." + kv + ".x", "$JS.API.CONSUMER.CREATE." + kv + ".x", "$JS.API.CONSUMER.NAMES." + kv,
		}, nil, true})
	}
	return append(rows,
		row{"ask the books", []string{"penstock.control.request.books"}, []topology.Role{operate}, true},
		row{"ask the ledger", []string{"penstock.control.request.ledger-known"}, []topology.Role{operate, ingest}, true},
		row{"ask a source", []string{"penstock.control.request.rejudge.x"}, []topology.Role{operate}, true},
		row{"ask a lane", []string{"penstock.control.request.lane.1"}, []topology.Role{operate, ingest, deliver}, true},
		row{"ask all", []string{"penstock.control.ask.destinations", "penstock.control.ask.stats"}, []topology.Role{operate}, true},
		row{"manage the account", []string{"$JS.API.ACCOUNT.PURGE.x", "$JS.API.META.LEADER.STEPDOWN", "$JS.API.SERVER.REMOVE", "$SYS.REQ.SERVER.PING", "$JS.API.STREAM.LIST", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.CREATE.OTHER", "$JS.API.STREAM.TEMPLATE.CREATE.x"}, nil, true},
	)
}

// Every subject of every other role's is refused, and its own are not. The rows come from
// the table of the flow: a stream that nobody may write, read or trim fails here.
func TestNobodyDoesWhatIsAnothers(t *testing.T) {
	t.Parallel()
	b := start(t, "") // without streams: what is allowed goes nowhere
	rows := matrix()
	for _, r := range topology.Roles {
		var all []string
		for _, row := range rows {
			all = append(all, row.subjects...)
		}
		refused := b.attack(r).refused("Publish", all...)
		for _, row := range rows {
			allowed := 0
			for _, s := range row.subjects {
				if !refused[s] {
					allowed++
				}
				switch mine := slices.Contains(row.who, r); {
				case !mine && !refused[s]:
					t.Errorf("%s may %s: %s is not refused", r, row.what, s)
				case mine && row.all && refused[s]:
					t.Errorf("%s cannot %s: %s is refused", r, row.what, s)
				}
			}
			if slices.Contains(row.who, r) && allowed == 0 {
				t.Errorf("%s cannot %s in any way", r, row.what)
			}
		}
		if len(refused) < len(all)/2 {
			t.Errorf("only %d of %d subjects are refused to %s", len(refused), len(all), r)
		}
	}
	for _, s := range topology.Flow {
		if s.Name != topology.Audit && (len(s.From) == 0 && len(alsoWrite[s.Name]) == 0 || len(s.To) == 0 && !slices.Contains(operateKeeps, s.Name)) {
			t.Errorf("nobody writes, or nobody reads and trims %s", s.Name)
		}
	}
}

// Nobody listens where the answers of another come, nor to what flows past.
func TestNobodyListensToOthers(t *testing.T) {
	t.Parallel()
	b := start(t, "")
	for _, r := range topology.Roles {
		others := []string{">", "*", "_INBOX.>", "*.>", "$JS.>", "$JS.ACK.>", "$JS.API.>", "$JS.EVENT.>", "$KV.>", "$SYS.>", "penstock.>", "penstock.control.>", "penstock.control.request.>", r.Inbox()}
		for _, other := range topology.Roles {
			if other != r {
				others = append(others, other.Inbox()+".>", other.Inbox()+".x")
			}
		}
		for _, s := range topology.Flow {
			others = append(others, s.Subjects...)
			for _, subject := range s.Subjects {
				others = append(others, literal(subject))
			}
		}
		for subject, who := range map[string]topology.Role{
			"penstock.control.request.ledger-known": topology.RoleOperate, "penstock.control.request.books": topology.RoleOperate,
			"penstock.control.request.rejudge.x": "ingest", "penstock.control.request.lane.1": "dedupe",
			"penstock.control.ask.destinations": "deliver", "penstock.control.ask.freshness": topology.RoleOperate,
		} {
			if who != r {
				others = append(others, subject)
			}
		}
		refused := b.attack(r).refused("Subscribe", others...)
		for _, s := range others {
			if !refused[s] {
				t.Errorf("%s may subscribe to %s", r, s)
			}
		}
		if mine := r.Inbox() + ".x"; b.attack(r).refused("Subscribe", mine)[mine] {
			t.Errorf("%s may not subscribe to %s, which is its own", r, mine)
		}
	}
}

// What a role was asked it may answer, once, and only then.
func TestAnswersOnce(t *testing.T) {
	t.Parallel()
	b := start(t, "")
	asker, answerer := b.attack(topology.RoleOperate), b.attack("deliver")
	asked := make(chan string, 1)
	if _, err := answerer.nc.Subscribe("penstock.control.ask.destinations", func(m *nats.Msg) {
		_ = m.Respond([]byte("here"))
		asked <- m.Reply
	}); err != nil {
		t.Fatal(err)
	}
	if err := answerer.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if m, err := asker.nc.RequestWithContext(ctx, "penstock.control.ask.destinations", nil); err != nil || string(m.Data) != "here" {
		t.Fatalf("%v, %v", m, err)
	}
	if reply := <-asked; !answerer.refused("Publish", reply)[reply] {
		t.Error("a second answer is not refused")
	}
	if s := topology.RoleOperate.Inbox() + ".forged"; !answerer.refused("Publish", s)[s] {
		t.Error("an answer to what was not asked is not refused")
	}
}

// New passwords are the only ones that are good; what was there stays otherwise.
func TestRotation(t *testing.T) {
	t.Parallel()
	b := start(t, "")
	connect := func(r topology.Role, password string) error {
		nc, err := nats.Connect("nats://"+b.addr, nats.UserInfo(string(r), password))
		if err == nil {
			nc.Close()
		}
		return err
	}
	before := map[topology.Role]string{}
	for _, r := range topology.Roles {
		before[r] = b.password(r)
		if len(before[r]) < 40 {
			t.Errorf("the password of %s has %d characters", r, len(before[r]))
		}
	}
	conf := func() string {
		data, err := os.ReadFile(filepath.Join(b.dir, "users", "nats", "users.conf"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	was := conf()
	if out := b.writeUsers(); strings.Contains(out, " new ") || conf() != was {
		t.Errorf("a second time it is not as it was: %s", out)
	}
	out := b.writeUsers("--rotate", "--role", "fetch")
	for _, r := range topology.Roles {
		now := b.password(r)
		if (now != before[r]) != (r == "fetch") {
			t.Errorf("the password of %s: changed is %v", r, now != before[r])
		}
		if strings.Contains(out+conf(), now) {
			t.Errorf("the password of %s is printed", r)
		}
		info, err := os.Stat(filepath.Join(b.dir, "users", string(r), "password"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the password of %s: %v, %v", r, info.Mode(), err)
		}
	}
	if err := connect("fetch", before["fetch"]); err != nil {
		t.Errorf("before the server has read it: %v", err)
	}
	if err := b.Reload(); err != nil {
		t.Fatal(err)
	}
	if err := connect("fetch", before["fetch"]); err == nil {
		t.Error("the old password is still good")
	}
	for _, r := range topology.Roles {
		if err := connect(r, b.password(r)); err != nil {
			t.Errorf("%s: %v", r, err)
		}
	}
	_, errOut, code := harness.Run(t, nil, "topology", "show", "--nats", "nats://fetch:"+before["fetch"]+"@"+b.addr)
	if code == 0 || strings.Contains(errOut, before["fetch"]) || !strings.Contains(errOut, "bus.refused") {
		t.Errorf("with the old password: %d, %q", code, errOut)
	}
}

// Mistakes at the command line are named, before anything is written.
func TestUsage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		says string
		args []string
	}{
		{"use some of ingest", []string{"--role", "fetsch"}},
		{"say with --dir where the passwords are", []string{"--rotate"}},
		{"issue new certificates", []string{"--rotate", "--mtls", "--dir", "DIR"}},
		{"{role}", []string{"--mtls", "--cert-name", "penstock"}},
		{"numbers", []string{"--owner", "root", "--dir", "DIR"}},
		{"numbers", []string{"--owner", "1", "--dir", "DIR"}},
		{"kubernetes", []string{"--format", "helm"}},
		{"not printed", []string{"--format", "kubernetes"}},
		{"letters", []string{"--account", "a b"}},
	} {
		dir := t.TempDir()
		args := []string{"topology", "users"}
		for _, a := range tt.args {
			args = append(args, strings.ReplaceAll(a, "DIR", dir))
		}
		out, errOut, code := harness.Run(t, nil, args...)
		if entries, err := os.ReadDir(dir); code != 2 || !strings.Contains(errOut, tt.says) || out != "" || err != nil || len(entries) != 0 {
			t.Errorf("%v: exit code %d, %q, %v", tt.args, code, errOut, entries)
		}
	}
}

// The users of an account, and as printed for a server that has the passwords in its
// environment.
func TestOtherForms(t *testing.T) {
	b := start(t, "", "--account", "LOGS")
	if a := b.attack("parse"); len(a.refused("Publish", "penstock.parsed.1", "penstock.event.x")) != 1 {
		t.Error("in an account the permissions are others")
	}
	if _, err := b.LookupAccount("LOGS"); err != nil {
		t.Error(err)
	}
	out, _, _ := harness.Run(t, nil, "topology", "users", "--role", "parse,admin")
	t.Setenv("PENSTOCK_PASSWORD_PARSE", "one")
	t.Setenv("PENSTOCK_PASSWORD_ADMIN", "two")
	path := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(path, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := server.ProcessConfigFile(path)
	if err != nil || len(o.Users) != 2 || o.Users[0].Password != "one" || len(o.Users[0].Permissions.Publish.Allow) < 10 {
		t.Errorf("%v, %+v", err, o)
	}
	dir := t.TempDir()
	out, _, code := harness.Run(t, nil, "topology", "users", "--dir", dir, "--format", "kubernetes", "--namespace", "logs")
	manifest, err := os.ReadFile(filepath.Join(dir, "nats", "secrets.yaml"))
	if code != 0 || err != nil || strings.Count(string(manifest), "kind: Secret") != 1+len(topology.Roles) || !strings.Contains(string(manifest), "namespace: logs") {
		t.Errorf("%d, %v: %s%s", code, err, out, manifest)
	}
}

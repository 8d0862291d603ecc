package route

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/transform"
	"github.com/penstock/penstock/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testKey = "0123456789abcdef"

// hashOf is what a hash mask writes for a text.
func hashOf(text string) string {
	mac := hmac.New(sha256.New, []byte(testKey))
	mac.Write([]byte(text))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

const frameType = "cloud.aws.cloudtrail.iam"

func trailDoc(n int) string {
	return fmt.Sprintf(`{"n":%d,"eventName":%q,"userIdentity":{"type":"IAMUser","userName":"user-%d"},"sourceIPAddress":"192.0.2.%d","requestParameters":{"key":%q},"readOnly":%v}`,
		n, []string{"GetUser", "CreateUser"}[n%2], n, n%250, strings.Repeat("k", 900), n%2 == 0)
}

func idOf(i int) messages.ID { return messages.NewID(fmt.Append(nil, i)) }

func pullOf(k int) []byte { return messages.NewPull("test", fmt.Sprint(k)) }

// frameOf makes a UNIQUE message of n events of three pulls in turn, of which
// those in duplicates are marked. Record ordinals run within a pull, from 100 on.
func frameOf(t testing.TB, n int, duplicates ...int) topology.In[messages.View] {
	t.Helper()
	b := messages.NewBuilder(messages.Header{Source: "trail", Format: "cloudtrail", EventType: frameType, Lane: 3})
	for i := range n {
		origin := b.Origin(&messages.Origin{Pull: pullOf(i % 3), Source: "trail", Key: fmt.Sprint("key-", i%3), Created: 5})
		b.Add(messages.Event{
			ID: idOf(i), Time: int64(1000 + i), Account: []string{"111111111111", "222222222222"}[i%2], Region: "eu-west-1",
			Origin: origin, Record: uint64(100 + i/3), Doc: []byte(trailDoc(i)),
		})
	}
	data := b.Encode(nil)
	v, err := messages.DecodeFrame(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range duplicates {
		v.SetFate(i, messages.Duplicate)
	}
	return topology.In[messages.View]{Value: v, Data: data, Subject: topology.UniqueSubject(3), Sequence: 77, Attempt: 1}
}

func routeOf(t testing.TB, rules ...Rule) *Route {
	t.Helper()
	r, err := New(Config{Rules: rules}, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// run routes one frame and returns what came out.
func run(t testing.TB, r *Route, in topology.In[messages.View]) (*topology.Recorder, *messages.Routed) {
	t.Helper()
	out := &topology.Recorder{}
	if err := r.Handle(t.Context(), in, out); err != nil {
		t.Fatal(err)
	}
	if len(out.Facts()) != 1 || out.Facts()[0].GetRouted() == nil {
		t.Fatalf("facts %v, want one of routed", out.Facts())
	}
	return out, out.Facts()[0].GetRouted()
}

// event is one event of an EVENTS frame.
type event struct {
	messages.Event
	typ, source, format string
	pull                []byte
}

// live reads the live events out of published frames.
func live(t testing.TB, out *topology.Recorder) map[messages.ID]event {
	t.Helper()
	all := map[messages.ID]event{}
	for _, m := range out.Messages() {
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		if m.Subject != topology.EventSubject(v.EventType()) || v.Format() != "cloudtrail" && v.Format() != "ocsf" || v.Lane() != 3 {
			t.Errorf("frame of type %s, format %s, lane %d on subject %s", v.EventType(), v.Format(), v.Lane(), m.Subject)
		}
		var c messages.Columns
		if err := v.Columns(&c); err != nil {
			t.Fatal(err)
		}
		body, err := v.Body(nil)
		if err != nil {
			t.Fatal(err)
		}
		origins, err := v.Origins()
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		for i := range v.Len() {
			from := at
			at += int(c.Lengths[i])
			if v.Fate(i) != messages.Live {
				continue
			}
			if _, twice := all[v.ID(i)]; twice {
				t.Errorf("event %v is there twice", v.ID(i))
			}
			all[v.ID(i)] = event{
				Event: messages.Event{ID: v.ID(i), Time: c.Times[i], Account: named(c.Accounts, c.AccountOf, i), Region: named(c.Regions, c.RegionOf, i), Record: c.Records[i], Doc: body[from:at]},
				typ:   v.EventType(), source: v.Source(), format: v.Format(), pull: origins[c.OriginOf[i]].GetPull(),
			}
		}
	}
	return all
}

// ordinals adds up differences.
func ordinals(diffs []int64) []uint64 {
	var out []uint64
	last := int64(0)
	for _, d := range diffs {
		last += d
		out = append(out, uint64(last))
	}
	return out
}

func dropped(f *messages.Routed) map[string]uint64 {
	sum := map[string]uint64{}
	for _, p := range f.GetPulls() {
		for rule, n := range p.GetDropped() {
			sum[rule] += n
		}
	}
	return sum
}

func TestForwardsUnread(t *testing.T) {
	in := frameOf(t, 10, 4, 7)
	want := bytes.Clone(in.Value.Encoded())
	out, fact := run(t, routeOf(t, Rule{Name: "other", Types: []string{"sig.>"}, Drop: true}), in)
	m := out.Messages()
	if len(m) != 1 || m[0].Subject != "penstock.event."+frameType || m[0].ID != "u3/77" || !bytes.Equal(m[0].Data, want) {
		t.Errorf("published %d, first %s %s", len(m), m[0].Subject, m[0].ID)
	}
	if fact.GetLane() != 3 || fact.GetSequence() != 77 || fact.GetEventType() != frameType || fact.GetSource() != "trail" || len(fact.GetPulls()) != 3 {
		t.Fatalf("fact %v", fact)
	}
	// Events 0 3 6 9 are of pull 0 (records 100 to 103), 1 4 7 of pull 1, 2 5 8 of pull 2.
	for k, want := range []struct{ unique, duplicate string }{{"[100 101 102 103]", "[]"}, {"[100]", "[101 102]"}, {"[100 101 102]", "[]"}} {
		p := fact.GetPulls()[k]
		if !bytes.Equal(p.GetPull(), pullOf(k)) || fmt.Sprint(ordinals(p.GetUnique())) != want.unique || fmt.Sprint(ordinals(p.GetDuplicate())) != want.duplicate || len(p.GetDropped()) != 0 {
			t.Errorf("pull %d: %v, want %v", k, p, want)
		}
	}
}

func TestNothingLiveIsNotPublished(t *testing.T) {
	r := routeOf(t, Rule{Name: "all", Drop: true})
	out, fact := run(t, routeOf(t), frameOf(t, 2, 0, 1))
	if len(out.Messages()) != 0 || len(fact.GetPulls()) != 2 {
		t.Errorf("duplicates only: %d messages, fact %v", len(out.Messages()), fact)
	}
	if out, fact = run(t, r, frameOf(t, 6, 5)); len(out.Messages()) != 0 || dropped(fact)["all"] != 5 {
		t.Errorf("all dropped: %d messages, fact %v", len(out.Messages()), fact)
	}
	if out, fact = run(t, r, frameOf(t, 0)); len(out.Messages()) != 0 || len(fact.GetPulls()) != 0 {
		t.Errorf("a marker: %d messages, fact %v", len(out.Messages()), fact)
	}
}

func TestRules(t *testing.T) {
	hashKey := config.NewSecret(testKey)
	tests := []struct {
		name    string
		rules   []Rule
		live    int
		dropped string
	}{
		{"no rule", nil, 20, "map[]"},
		{"drop by document", []Rule{{Name: "reads", Where: `event.doc.readOnly`, Drop: true}}, 10, "map[reads:10]"},
		{"drop by column", []Rule{{Name: "one", Where: `event.account == "111111111111" && event.type.endsWith("iam") && event.source == "trail"`, Drop: true}}, 10, "map[one:10]"},
		{"the first that drops counts", []Rule{
			{Name: "a", Where: `event.doc.n < 5`, Drop: true}, {Name: "b", Where: `event.doc.n < 8`, Drop: true}, {Name: "c", Types: []string{"x"}, Drop: true},
		}, 12, "map[a:5 b:3]"},
		{"keep none", []Rule{{Name: "none", Sample: &Sample{Keep: 0}}}, 0, "map[none:20]"},
		{"keep all", []Rule{{Name: "all", Sample: &Sample{Keep: 1}}}, 20, "map[]"},
		{"type filter", []Rule{{Name: "t", Types: []string{"cloud.*.cloudtrail.>"}, Drop: true}}, 0, "map[t:20]"},
		{"an expression that fails drops nothing", []Rule{{Name: "bad", Where: `event.doc.absent == 1`, Drop: true}}, 20, "map[]"},
		{"a later rule sees the masked document", []Rule{
			{Name: "m", Mask: &transform.Mask{Fields: []string{"eventName"}, Method: transform.Redact}}, {Name: "d", Where: `event.doc.eventName == "[redacted]" && event.doc.n < 3`, Drop: true},
		}, 17, "map[d:3]"},
		{"a later rule sees the new type", []Rule{
			{Name: "s", Where: `event.doc.n < 4`, SetType: "my.{source}.{type}"},
			{Name: "d", Types: []string{"my.trail.cloud.>"}, Drop: true},
			{Name: "h", Types: []string{"my.>"}, Mask: &transform.Mask{Fields: []string{"n"}, Method: transform.Hash, Key: hashKey}},
		}, 16, "map[d:4]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, fact := run(t, routeOf(t, tt.rules...), frameOf(t, 20))
			if got := len(live(t, out)); got != tt.live {
				t.Errorf("%d live, want %d", got, tt.live)
			}
			if got := fmt.Sprint(dropped(fact)); got != tt.dropped {
				t.Errorf("dropped %s, want %s", got, tt.dropped)
			}
			unique := 0
			for _, p := range fact.GetPulls() {
				unique += len(p.GetUnique())
			}
			if unique != 20 {
				t.Errorf("%d unique in the fact, want 20: what a rule drops was unique", unique)
			}
		})
	}
}

func TestSampling(t *testing.T) {
	tenth := routeOf(t, Rule{Name: "tenth", Sample: &Sample{Keep: 0.1}})
	first, fact := run(t, tenth, frameOf(t, 1000))
	again, _ := run(t, tenth, frameOf(t, 1000))
	a, b := live(t, first), live(t, again)
	if len(a) < 60 || len(a) > 140 || dropped(fact)["tenth"] != uint64(1000-len(a)) {
		t.Errorf("%d of 1000 kept, dropped %v", len(a), dropped(fact))
	}
	for id := range a {
		if _, ok := b[id]; !ok {
			t.Errorf("%v kept once and dropped once", id)
		}
	}
	v, err := messages.DecodeFrame(first.Messages()[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	for i := range v.Len() {
		if f := v.Fate(i); f != messages.Live && f != messages.Sampled {
			t.Fatalf("fate %v", f)
		}
	}
}

// covers: VOI-33, OPC-27
func TestMaskedFrame(t *testing.T) {
	r := routeOf(t, Rule{Name: "names", Where: `event.doc.n < 15`, Mask: &transform.Mask{Fields: []string{"userIdentity.userName"}, Method: transform.Hash, Key: config.NewSecret(testKey)}})
	out, fact := run(t, r, frameOf(t, 20, 3))
	if len(out.Messages()) != 1 || out.Messages()[0].ID != "u3/77" {
		t.Fatalf("%d messages", len(out.Messages()))
	}
	all := live(t, out)
	if len(all) != 19 || len(dropped(fact)) != 0 {
		t.Errorf("%d live, dropped %v", len(all), dropped(fact))
	}
	for i := range 20 {
		e, ok := all[idOf(i)]
		if i == 3 {
			if ok {
				t.Error("the duplicate came back to life")
			}
			continue
		}
		want := trailDoc(i)
		if i < 15 {
			want = strings.Replace(want, fmt.Sprintf("user-%d", i), hashOf(fmt.Sprintf("user-%d", i)), 1)
		}
		if string(e.Doc) != want || e.Time != int64(1000+i) || e.Record != uint64(100+i/3) || !bytes.Equal(e.pull, pullOf(i%3)) || e.Account != []string{"111111111111", "222222222222"}[i%2] || e.Region != "eu-west-1" || e.source != "trail" {
			t.Errorf("event %d is %+v, want the document %s", i, e, want)
		}
	}
}

func TestMaskThatCannotTellMasks(t *testing.T) {
	forget(t)
	r := routeOf(t, Rule{Name: "careful", Where: `event.doc.absent == 1`, Mask: &transform.Mask{Fields: []string{"n"}, Method: transform.Redact}})
	out, _ := run(t, r, frameOf(t, 3))
	for id, e := range live(t, out) {
		if !strings.HasPrefix(string(e.Doc), `{"n":"[redacted]",`) {
			t.Errorf("%v went on as %.40s", id, e.Doc)
		}
	}
	if n := value(t, conditionErrors.WithLabelValues("careful")); n != 3 {
		t.Errorf("%v errors counted", n)
	}
	if n := value(t, eventsMasked.WithLabelValues("careful")); n != 3 {
		t.Errorf("%v masked counted", n)
	}
}

func TestMaskFailureIsQuarantined(t *testing.T) {
	b := messages.NewBuilder(messages.Header{Source: "trail", Format: "cloudtrail", EventType: frameType, Lane: 3, Replay: "r"})
	origin := b.Origin(&messages.Origin{Pull: pullOf(0), Source: "trail", Key: "k"})
	for i, doc := range []string{`{"a":"x"}`, `{"a":"secret"`, `{"b":1}`} {
		b.Add(messages.Event{ID: idOf(i), Origin: origin, Record: uint64(i), Doc: []byte(doc)})
	}
	data := b.Encode(nil)
	v, err := messages.DecodeFrame(data)
	if err != nil {
		t.Fatal(err)
	}
	r := routeOf(t, Rule{Name: "m", Mask: &transform.Mask{Fields: []string{"a"}, Method: transform.Redact}})
	out, fact := run(t, r, topology.In[messages.View]{Value: v, Data: data, Subject: topology.UniqueSubject(3), Sequence: 1, Attempt: 1})
	if all := live(t, out); len(all) != 2 || string(all[idOf(0)].Doc) != `{"a":"[redacted]"}` || string(all[idOf(2)].Doc) != `{"b":1}` {
		t.Errorf("live %v", all)
	}
	if dropped(fact)["m"] != 1 || len(out.Quarantined()) != 1 {
		t.Fatalf("dropped %v, %d in quarantine", dropped(fact), len(out.Quarantined()))
	}
	q := out.Quarantined()[0]
	if q.GetCode() != "route.mask_failed" || q.GetRecord() != 1 || q.GetOrigin().GetKey() != "k" || q.GetReplay() != "r" || q.GetHolds() != messages.Quarantine_HOLDS_EVENT || string(q.GetPayload()) != `{"a":"secret"` || strings.Contains(q.GetReason(), "secret") {
		t.Errorf("entry %v", q)
	}
}

func TestSetTypeSplitsTheFrame(t *testing.T) {
	r := routeOf(t,
		Rule{Name: "writes", Where: `event.doc.eventName == "CreateUser"`, SetType: "my.writes"},
		Rule{Name: "first", Where: `event.doc.n == 0`, SetType: "my.{source}"})
	out, _ := run(t, r, frameOf(t, 10, 9))
	var ids []string
	for _, m := range out.Messages() {
		id, set, _ := strings.Cut(m.ID, "#")
		if set == "" {
			t.Errorf("%s does not tell that it is a part", m.ID)
		}
		ids = append(ids, m.Subject+" "+id)
	}
	want := "penstock.event." + frameType + " u3/77, penstock.event.my.trail u3/77/my.trail, penstock.event.my.writes u3/77/my.writes"
	if got := strings.Join(ids, ", "); got != want {
		t.Errorf("published %s\nwant      %s", got, want)
	}
	all := live(t, out)
	if len(all) != 9 {
		t.Errorf("%d live", len(all))
	}
	for i := range 9 {
		want := frameType
		if i%2 == 1 {
			want = "my.writes"
		}
		if i == 0 {
			want = "my.trail"
		}
		if e := all[idOf(i)]; e.typ != want || string(e.Doc) != trailDoc(i) {
			t.Errorf("event %d has type %s, want %s", i, e.typ, want)
		}
	}
	whole, _ := run(t, routeOf(t, Rule{Name: "all", SetType: "my.type"}), frameOf(t, 4))
	if m := whole.Messages(); len(m) != 1 || m[0].Subject != "penstock.event.my.type" || m[0].ID != "u3/77/my.type" {
		t.Errorf("all of a new type: %v %v", m[0].Subject, m[0].ID)
	}
}

func TestGrownFrameIsCut(t *testing.T) {
	b := messages.NewBuilder(messages.Header{Source: "trail", Format: "cloudtrail", EventType: frameType, Lane: 3})
	origin := b.Origin(&messages.Origin{Pull: pullOf(0), Source: "trail"})
	for i := range 10 { // 2 bytes become 34 and more
		b.Add(messages.Event{ID: idOf(i), Origin: origin, Record: uint64(i), Doc: []byte(`{"a":[1` + strings.Repeat(",1", 49_999) + `]}`)})
	}
	data := b.Encode(nil)
	v, err := messages.DecodeFrame(data)
	if err != nil {
		t.Fatal(err)
	}
	r := routeOf(t, Rule{Name: "m", Mask: &transform.Mask{Fields: []string{"a"}, Method: transform.Hash, Key: config.NewSecret(testKey)}})
	out, _ := run(t, r, topology.In[messages.View]{Value: v, Data: data, Subject: topology.UniqueSubject(3), Sequence: 5})
	if len(out.Messages()) < 4 || len(live(t, out)) != 10 {
		t.Errorf("%d frames with %d events", len(out.Messages()), len(live(t, out)))
	}
	ids := map[string]bool{}
	for _, m := range out.Messages() {
		if ids[m.ID] || !strings.HasPrefix(m.ID, "u3/5") {
			t.Errorf("message id %s", m.ID)
		}
		ids[m.ID] = true
	}
}

// The frame is taken again after a rule has become another, and one message of the first
// attempt was stored: none of its events may be taken for stored with it.
func TestMessageIDsSayWhichEvents(t *testing.T) {
	apart := func(n string) []Rule {
		return []Rule{{Name: "apart", Where: "event.doc.n < " + n, SetType: "my.type"}, {Name: "few", Where: "event.doc.n >= 7", Drop: true}}
	}
	stored := map[string]map[messages.ID]bool{}
	for attempt, rules := range [][]Rule{apart("3"), apart("5"), nil, {{Name: "fewer", Where: "event.doc.n == 2", Drop: true}}, apart("3")} {
		out, _ := run(t, routeOf(t, rules...), frameOf(t, 10))
		for _, m := range out.Messages() {
			v, err := messages.DecodeFrame(m.Data)
			if err != nil {
				t.Fatal(err)
			}
			events := map[messages.ID]bool{}
			for i := range v.Len() {
				if v.Fate(i) == messages.Live {
					events[v.ID(i)] = true
				}
			}
			key := m.Subject + " " + m.ID
			if before, ok := stored[key]; ok && !maps.Equal(before, events) {
				t.Errorf("attempt %d: %s had %d events before, now other %d", attempt, key, len(before), len(events))
			}
			stored[key] = events
		}
	}
	again := func() (ids []string) {
		out, _ := run(t, routeOf(t, apart("3")...), frameOf(t, 10))
		for _, m := range out.Messages() {
			ids = append(ids, m.ID)
		}
		return ids
	}
	if a, b := again(), again(); !slices.Equal(a, b) {
		t.Errorf("ids %v, then %v", a, b)
	}
}

// Hashes compress worse than what they hide, so a document that has become shorter may
// need more room than a frame has.
func TestShorterDocumentBeyondAFrame(t *testing.T) {
	var doc bytes.Buffer
	doc.WriteString(`{"a":[0`)
	for i := range 600_000 {
		fmt.Fprintf(&doc, `,"%044d"`, i)
	}
	doc.WriteString(`]}`)
	b := messages.NewBuilder(messages.Header{Source: "trail", Format: "cloudtrail", EventType: frameType, Lane: 3})
	b.Add(messages.Event{ID: idOf(0), Origin: b.Origin(&messages.Origin{Pull: pullOf(0), Source: "trail"}), Doc: doc.Bytes()})
	data := b.Encode(nil)
	v, err := messages.DecodeFrame(data)
	if err != nil {
		t.Fatal(err)
	}
	r := routeOf(t, Rule{Name: "m", Mask: &transform.Mask{Fields: []string{"a"}, Method: transform.Hash, Key: config.NewSecret(testKey)}})
	out, fact := run(t, r, topology.In[messages.View]{Value: v, Data: data, Subject: topology.UniqueSubject(3), Sequence: 5})
	if q := out.Quarantined(); len(out.Messages()) != 0 || len(q) != 1 || q[0].GetCode() != "route.too_large" || dropped(fact)["m"] != 1 {
		t.Errorf("%d messages, quarantined %d, dropped %v", len(out.Messages()), len(q), dropped(fact))
	}
}

// enrichUsers adds a team to the users 1 and 2.
func enrichUsers(t testing.TB) *transform.Enrich {
	t.Helper()
	name := filepath.Join(t.TempDir(), "users.csv")
	if err := os.WriteFile(name, []byte("user,team\nuser-1,red\nuser-2,blue\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &transform.Enrich{Fields: []string{"userIdentity.userName"}, CheckEvery: time.Hour, Table: &transform.Table{File: name, Key: "user", MaxRows: 10, MaxSize: 1000}}
}

// Each rule sees the document as the one before has left it.
func TestRulesCompose(t *testing.T) {
	forget(t)
	r := routeOf(t,
		Rule{Name: "team", Enrich: enrichUsers(t)},
		Rule{Name: "blue", Where: `event.doc.?penstock.?users.?team.orValue("") == "blue"`, Drop: true},
		Rule{Name: "names", Mask: &transform.Mask{Fields: []string{"userIdentity.userName"}, Method: transform.Redact}},
		Rule{Name: "masked", Enrich: enrichUsers(t)}, // the name is not there any more
		Rule{Name: "ocsf", Where: `event.doc.userIdentity.userName == "[redacted]" && event.doc.n != 3`, OCSF: &OCSF{Enabled: true}},
		Rule{Name: "again", OCSF: &OCSF{Enabled: true}},
		Rule{Name: "type", Where: `has(event.doc.class_uid) && event.doc.class_uid == 6003`, SetType: "ocsf.{type}"})
	out, fact := run(t, r, frameOf(t, 5, 4))
	all := live(t, out)
	if len(all) != 3 || dropped(fact)["blue"] != 1 {
		t.Fatalf("%d live, dropped %v", len(all), dropped(fact))
	}
	for i, want := range map[int]string{
		0: `"name":"[redacted]"`,
		1: `"penstock":{"users":{"team":"red"}}`,
		3: `"name":"[redacted]"`, // by the rule again
	} {
		if e := all[idOf(i)]; e.format != "ocsf" || e.typ != "ocsf."+frameType || !strings.Contains(string(e.Doc), want) || strings.Contains(string(e.Doc), "user-") {
			t.Errorf("event %d of type %s and format %s is %s", i, e.typ, e.format, e.Doc)
		}
	}
	for counter, want := range map[prometheus.Counter]float64{
		eventsEnriched.WithLabelValues("team", "added"): 2, eventsEnriched.WithLabelValues("team", "unknown"): 2,
		eventsEnriched.WithLabelValues("masked", "unknown"): 3, eventsMasked.WithLabelValues("names"): 3,
		eventsOCSF.WithLabelValues("ocsf", "mapped"): 2, eventsOCSF.WithLabelValues("again", "mapped"): 1,
	} {
		if got := value(t, counter); got != want {
			t.Errorf("%v: %v, want %v", counter.Desc(), got, want)
		}
	}
}

// Events of one type part by whether they are OCSF, and each message has an id of its
// own.
func TestOCSFHasAFrameOfItsOwn(t *testing.T) {
	r := routeOf(t,
		Rule{Name: "o", Where: `event.doc.n < 4`, OCSF: &OCSF{Enabled: true}},
		Rule{Name: "t", Where: `event.id.size() > 0 && event.account == "222222222222"`, SetType: "ocsf"})
	out, _ := run(t, r, frameOf(t, 8))
	var ids []string
	for _, m := range out.Messages() {
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		id, _, _ := strings.Cut(m.ID, "#")
		ids = append(ids, fmt.Sprint(id, " ", v.Format(), " ", v.Len()))
	}
	if got, want := strings.Join(ids, ", "), "u3/77 cloudtrail 2, u3/77+ocsf ocsf 2, u3/77/ocsf cloudtrail 2, u3/77/ocsf+ocsf ocsf 2"; got != want {
		t.Errorf("published %s\nwant      %s", got, want)
	}
	if len(live(t, out)) != 8 {
		t.Error("events were lost")
	}
}

// A document that a rule does not understand goes to quarantine as it came, and what
// was masked before does not leave by another way.
func TestFailureOfAChangeIsQuarantined(t *testing.T) {
	for _, tt := range []struct {
		code string
		rule Rule
		doc  string
	}{
		{"route.enrich_failed", Rule{Name: "c", Enrich: enrichUsers(t)}, `{"b":1,"secret":"x"`},
		{"route.ocsf_failed", Rule{Name: "c", OCSF: &OCSF{Enabled: true}}, `{"b":1,"secret":"x"`},
		{"route.ocsf_failed", Rule{Name: "c", OCSF: &OCSF{Enabled: true}}, `["secret"]`},
		{"route.too_large", Rule{Name: "c", OCSF: &OCSF{Enabled: true, RawData: true}}, `{"b":"` + noise(7<<20) + `"}`},
	} {
		b := messages.NewBuilder(messages.Header{Source: "trail", Format: "cloudtrail", EventType: frameType, Lane: 3})
		origin := b.Origin(&messages.Origin{Pull: pullOf(0), Source: "trail", Key: "k"})
		b.Add(messages.Event{ID: idOf(0), Origin: origin, Doc: []byte(tt.doc)})
		b.Add(messages.Event{ID: idOf(1), Origin: origin, Doc: []byte(`{"b":2,"a":"x"}`)})
		data := b.Encode(nil)
		v, err := messages.DecodeFrame(data)
		if err != nil {
			t.Fatal(err)
		}
		out, fact := run(t, routeOf(t, tt.rule), topology.In[messages.View]{Value: v, Data: data, Subject: topology.UniqueSubject(3), Sequence: 1, Attempt: 1})
		if all := live(t, out); len(all) != 1 || dropped(fact)["c"] != 1 || len(out.Quarantined()) != 1 {
			t.Fatalf("%s: %d live, dropped %v, %d in quarantine", tt.code, len(all), dropped(fact), len(out.Quarantined()))
		}
		if q := out.Quarantined()[0]; q.GetCode() != tt.code || string(q.GetPayload()) != tt.doc || strings.Contains(q.GetReason(), "secret") {
			t.Errorf("entry %.300v", q)
		}
	}
}

// noise is text that does not compress.
func noise(n int) string {
	b := make([]byte, n/2)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b) // it never fails
	return hex.EncodeToString(b)
}

func TestOCSFWithoutATable(t *testing.T) {
	forget(t)
	in := frameOf(t, 3)
	b := messages.NewBuilder(messages.Header{Source: "trail", Format: "json", EventType: "a.b", Lane: 3})
	b.Add(messages.Event{ID: idOf(0), Origin: b.Origin(&messages.Origin{Pull: pullOf(0)}), Doc: []byte(`{"a":1}`)})
	in.Data = b.Encode(nil)
	var err error
	if in.Value, err = messages.DecodeFrame(in.Data); err != nil {
		t.Fatal(err)
	}
	out, _ := run(t, routeOf(t, Rule{Name: "o", OCSF: &OCSF{Enabled: true}}), in)
	if m := out.Messages(); len(m) != 1 || m[0].ID != "u3/77" || !bytes.Equal(m[0].Data, in.Value.Encoded()) {
		t.Errorf("it did not pass as it was: %d messages", len(out.Messages()))
	}
	if n := value(t, eventsOCSF.WithLabelValues("o", "no_mapping")); n != 1 {
		t.Errorf("counted %v", n)
	}
}

func TestFilesThatAreBadStopTheStart(t *testing.T) {
	e := enrichUsers(t)
	e.Table.Key = "absent"
	if _, err := New(Config{Rules: []Rule{{Name: "e", Enrich: e}}}, Deps{}); fault.CodeOf(err) != "enrich.unreadable" || fault.ClassOf(err) != fault.Stop {
		t.Errorf("got %v", err)
	}
}

// A frame that comes again gives the same messages and the same fact.
func TestRepeats(t *testing.T) {
	r := routeOf(t,
		Rule{Name: "s", Where: `event.doc.n % 3 == 0`, SetType: "my.type"},
		Rule{Name: "m", Mask: &transform.Mask{Fields: []string{"n"}, Method: transform.Hash, Key: config.NewSecret(testKey)}},
		Rule{Name: "d", Sample: &Sample{Keep: 0.5}},
		Rule{Name: "o", Where: `event.doc.readOnly`, OCSF: &OCSF{Enabled: true}})
	a, factA := run(t, r, frameOf(t, 30, 2))
	_, _ = run(t, r, frameOf(t, 300)) // something else in between
	b, factB := run(t, r, frameOf(t, 30, 2))
	if fmt.Sprint(factA) != fmt.Sprint(factB) || len(a.Messages()) != len(b.Messages()) {
		t.Errorf("facts %v and %v", factA, factB)
	}
	for i, m := range a.Messages() {
		if n := b.Messages()[i]; m.ID != n.ID || m.Subject != n.Subject || !bytes.Equal(m.Data, n.Data) {
			t.Errorf("message %d differs", i)
		}
	}
}

func TestEventsDroppedEarlierAreCounted(t *testing.T) {
	in := frameOf(t, 4)
	in.Value.SetFate(1, messages.Filtered)
	_, fact := run(t, routeOf(t), in)
	if got := fmt.Sprint(dropped(fact)); got != "map[earlier:1]" {
		t.Errorf("dropped %s", got)
	}
}

// failing is an outbox that does not take messages.
type failing struct{ topology.Recorder }

var errFull = errors.New("full")

func (f *failing) Publish(context.Context, topology.Message) error { return errFull }

func TestNoFactWithoutPublish(t *testing.T) {
	out := &failing{}
	if err := routeOf(t).Handle(t.Context(), frameOf(t, 3), out); !errors.Is(err, errFull) || len(out.Facts()) != 0 {
		t.Errorf("%v, %d facts", err, len(out.Facts()))
	}
}

func TestCorruptBody(t *testing.T) {
	in := frameOf(t, 50)
	for i := len(in.Data) - 300; i < len(in.Data); i++ { // the body comes last
		in.Data[i] = 0xff
	}
	r := routeOf(t, Rule{Name: "d", Where: `event.doc.n == 1`, Drop: true})
	if err := r.Handle(t.Context(), in, &topology.Recorder{}); fault.CodeOf(err) != "messages.bad_frame" || fault.ClassOf(err) != fault.Reject {
		t.Errorf("got %v", err)
	}
}

func TestConfig(t *testing.T) {
	tests := []struct {
		name, want string
		rules      []Rule
	}{
		{"no name", "routes[0].name: ", []Rule{{Drop: true}}},
		{"a name twice", "routes[1].name: ", []Rule{{Name: "a", Drop: true}, {Name: "a", Drop: true}}},
		{"no action", "routes[0]: ", []Rule{{Name: "a"}}},
		{"two actions", "routes[0]: ", []Rule{{Name: "a", Drop: true, SetType: "x"}}},
		{"bad pattern", "routes[0].types: ", []Rule{{Name: "a", Drop: true, Types: []string{"a..b"}}}},
		{"bad expression", "column 11: Syntax error: mismatched input", []Rule{{Name: "a", Drop: true, Where: "event.id +"}}},
		{"share above 1", "routes[0].sample.keep: ", []Rule{{Name: "a", Sample: &Sample{Keep: 1.5}}}},
		{"no fields", "routes[0].mask.fields: ", []Rule{{Name: "a", Mask: &transform.Mask{Method: transform.Redact}}}},
		{"an empty word", "routes[0].mask.fields[0]: ", []Rule{{Name: "a", Mask: &transform.Mask{Method: transform.Redact, Fields: []string{"a..b"}}}}},
		{"short key", "routes[0].mask.key: ", []Rule{{Name: "a", Mask: &transform.Mask{Method: transform.Hash, Fields: []string{"a"}, Key: config.NewSecret("short")}}}},
		{"key without use", "routes[0].mask.key: ", []Rule{{Name: "a", Mask: &transform.Mask{Method: transform.Redact, Fields: []string{"a"}, Key: config.NewSecret(testKey)}}}},
		{"unknown method", "routes[0].mask.method: ", []Rule{{Name: "a", Mask: &transform.Mask{Method: "x", Fields: []string{"a"}}}}},
		{"enrich nothing", "routes[0].enrich.fields: ", []Rule{{Name: "a", Enrich: &transform.Enrich{}}}},
		{"not ocsf", "routes[0].ocsf.enabled: ", []Rule{{Name: "a", OCSF: &OCSF{}}}},
		{"bad type", "routes[0].set_type: ", []Rule{{Name: "a", SetType: "a.*"}}},
		{"bad placeholder", "routes[0].set_type: ", []Rule{{Name: "a", SetType: "a.{account}"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := New(Config{Rules: tt.rules}, Deps{}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestConfigFromFile(t *testing.T) {
	cfg := Defaults()
	users := enrichUsers(t).Table.File
	err := config.Parse("test.yaml", []byte(strings.ReplaceAll(`
routes:
  - {name: a, types: [cloud.>], where: 'event.doc.readOnly', drop: true}
  - {name: b, sample: {keep: 0.25}}
  - {name: c, mask: {fields: [userIdentity.userName], key: "${KEY}"}}
  - {name: d, set_type: "my.{type}"}
  - {name: e, ocsf: true}
  - {name: f, ocsf: {raw_data: true}}
  - {name: g, enrich: {fields: [a.b], table: {file: FILE, key: user, fold_case: true}}}
  - {name: h, mask: {fields: [a], method: remove}}
`, "FILE", users)), &cfg, func(string) (string, bool) { return testKey, true })
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Rules) != 8 || !cfg.Rules[4].OCSF.Enabled || cfg.Rules[4].OCSF.RawData || !cfg.Rules[5].OCSF.Enabled || !cfg.Rules[5].OCSF.RawData ||
		cfg.Rules[6].Enrich.CheckEvery != 30*time.Second || cfg.Rules[6].Enrich.Table.MaxRows != 1_000_000 || cfg.Rules[7].Mask.Method != transform.Remove || cfg.Rules[1].Sample.Keep != 0.25 || cfg.Rules[2].Mask.Method != transform.Hash || cfg.Rules[2].Mask.Key.Reveal() != testKey {
		t.Errorf("rules %+v", cfg.Rules)
	}
	if _, err := New(cfg, Deps{}); err != nil {
		t.Error(err)
	}
}

// forget sets the counters of rules to 0.
func forget(t testing.TB) {
	t.Helper()
	conditionErrors.Reset()
	eventsMasked.Reset()
	eventsDropped.Reset()
	eventsEnriched.Reset()
	eventsOCSF.Reset()
}

func value(t testing.TB, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

func BenchmarkHandle(b *testing.B) {
	for _, bm := range []struct {
		name  string
		rules []Rule
		live  int
	}{
		{"fast", nil, 990},
		{"columns", []Rule{{Name: "x", Where: `event.region == "nowhere"`, Drop: true}}, 990},
		{"document", []Rule{{Name: "x", Where: `event.doc.eventName == "Nothing"`, Drop: true}}, 990},
		{"mask", []Rule{{Name: "x", Mask: &transform.Mask{Fields: []string{"userIdentity.userName", "sourceIPAddress"}, Method: transform.Hash, Key: config.NewSecret(testKey)}}}, 990},
		{"enrich", []Rule{{Name: "x", Enrich: enrichUsers(b)}}, 990},
		{"ocsf", []Rule{{Name: "x", OCSF: &OCSF{Enabled: true}}}, 990},
	} {
		b.Run(bm.name, func(b *testing.B) {
			r := routeOf(b, bm.rules...)
			var duplicates []int
			for i := range 10 {
				duplicates = append(duplicates, i*100)
			}
			in := frameOf(b, 1000, duplicates...)
			b.SetBytes(int64(in.Value.BodySize()))
			b.ReportAllocs()
			frames := 0
			for b.Loop() {
				frames++
				out := &topology.Recorder{}
				if err := r.Handle(b.Context(), in, out); err != nil {
					b.Fatal(err)
				}
				if len(out.Messages()) != 1 {
					b.Fatal("nothing published")
				}
			}
			out, _ := run(b, r, in)
			if n := len(live(b, out)); n != bm.live {
				b.Fatalf("%d live, want %d", n, bm.live)
			}
			b.ReportMetric(float64(frames)*1000/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// What is there again for one destination alone goes to where nobody else reads; the
// headers tell what is in a frame.
func TestFramesForOneDestination(t *testing.T) {
	for _, tt := range []struct{ replay, subject string }{
		{"", "penstock.event.t.x"}, {"job", "penstock.event.t.x"}, {"job@siem", "penstock.again.siem"},
	} {
		b := messages.NewBuilder(messages.Header{Source: "src", Format: "json", EventType: "t.x", Replay: tt.replay})
		o := b.Origin(&messages.Origin{Pull: messages.NewPull("p"), Source: "src"})
		for i := range 3 {
			b.Add(messages.Event{ID: messages.NewID([]byte{byte(i)}), Origin: o, Record: uint64(i), Doc: []byte(`{"k":1}`)})
		}
		v, err := messages.DecodeFrame(b.Encode(nil))
		if err != nil {
			t.Fatal(err)
		}
		v.SetFate(1, messages.Duplicate)
		for _, rules := range [][]Rule{nil, {{Name: "type", SetType: "t.x", Where: "true"}}} {
			r, err := New(Config{Rules: rules}, Deps{})
			if err != nil {
				t.Fatal(err)
			}
			var out topology.Recorder
			if err := r.Handle(t.Context(), topology.In[messages.View]{Value: v, Data: v.Encoded(), Subject: "penstock.unique.0", Sequence: 1}, &out); err != nil {
				t.Fatal(err)
			}
			m := out.Messages()
			if len(m) != 1 || m[0].Subject != tt.subject || m[0].Events != 2 || m[0].Bytes != 14 || m[0].Source != "src" {
				t.Errorf("%q: %+v", tt.replay, m)
			}
		}
	}
}

// holding is an outbox that takes nothing while it is closed, as a full stream does.
type holding struct {
	topology.Recorder
	open  chan struct{}
	bytes *atomic.Int64 // of documents that wait
}

// Publish implements topology.Outbox.
func (o *holding) Publish(ctx context.Context, m topology.Message) error {
	o.bytes.Add(int64(m.Bytes))
	<-o.open
	o.bytes.Add(-int64(m.Bytes))
	return o.Recorder.Publish(ctx, m)
}

// The bus bounds frames in hand as they come, compressed. What rules look into stands open,
// in several copies: that has a bound of its own, however well it was compressed.
func TestOpenDocumentsAreBounded(t *testing.T) {
	in := frameOf(t, 1000)
	mask := Rule{Name: "m", Mask: &transform.Mask{Fields: []string{"userIdentity.userName"}, Method: transform.Remove}}
	for _, tt := range []struct {
		name  string
		rules []Rule
		bound bool
	}{
		{"a rule that looks into them", []Rule{mask}, true},
		{"no rule", nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := routeOf(t, tt.rules...)
				const frames = 64
				out := &holding{open: make(chan struct{}), bytes: new(atomic.Int64)}
				var wg sync.WaitGroup
				for i := range frames {
					in := in
					in.Sequence = uint64(i)
					wg.Go(func() {
						if err := r.Handle(t.Context(), in, out); err != nil {
							t.Error(err)
						}
					})
				}
				synctest.Wait()
				if waiting := out.bytes.Load(); tt.bound != (waiting <= openBytes) || waiting == 0 {
					t.Errorf("%d bytes of documents stand open", waiting)
				}
				stopped, stop := context.WithCancelCause(t.Context())
				stop(errTest)
				if err := r.Handle(stopped, in, new(topology.Recorder)); tt.bound && !errors.Is(err, errTest) {
					t.Errorf("after a stop: %v", err)
				}
				close(out.open)
				wg.Wait()
				if n := len(out.Messages()); n != frames {
					t.Errorf("%d frames have come through, not %d", n, frames)
				}
			})
		})
	}
}

var errTest = errors.New("stopped")

package feed_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"reflect"
	"slices"
	"testing"

	klauspost "github.com/klauspost/compress/gzip"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
)

func startCloud(t testing.TB) *cloud.Cloud {
	t.Helper()
	c, err := cloud.Start(t.Context(), cloud.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// play installs a scenario and reads it with the reference reader.
func play(t *testing.T, s *feed.Scenario) (feed.Counts, *reader) {
	t.Helper()
	c := startCloud(t)
	url, err := feed.Install(t.Context(), c, s)
	if err != nil {
		t.Fatal(err)
	}
	r := newReader(t, c, s.Bucket)
	return r.drain(url), r
}

// same compares counts; an empty map is as good as none.
func same(t *testing.T, got, want feed.Counts) {
	t.Helper()
	if got.Messages != want.Messages || got.Pulls != want.Pulls || got.Objects != want.Objects || got.Records != want.Records || got.Events != want.Events ||
		got.Unique != want.Unique || got.Duplicates != want.Duplicates || !reflect.DeepEqual(got.Quarantined, want.Quarantined) || !reflect.DeepEqual(got.Ignored, want.Ignored) {
		t.Errorf("read   %+v\nwanted %+v", got, want)
	}
}

func TestDemo(t *testing.T) {
	s := feed.DemoOf(1, 0.2)
	got, r := play(t, s)
	same(t, got, s.Want)
	events := s.Events()
	if len(events) != len(r.seen) {
		t.Errorf("%d events expected, %d seen", len(events), len(r.seen))
	}
	for id, n := range events {
		if r.seen[id.String()] != n {
			t.Errorf("event %s was read %d times, expected %d", id, r.seen[id.String()], n)
		}
	}

	// The story has what its comment promises.
	if n := s.Want.Events; n < 12_000 || n > 14_000 {
		t.Errorf("%d events", n)
	}
	if q := s.Want.Quarantined; !reflect.DeepEqual(q, map[string]int{feed.BadRecord: 1, feed.Truncated: 1, feed.MissingKey: 1}) {
		t.Errorf("quarantined %v", q)
	}
	if s.Want.Ignored[feed.TestEvent] != 1 {
		t.Errorf("ignored %v", s.Want.Ignored)
	}
	first := feed.NewScenario(s.Steps[:len(s.Steps)-1]...) // without the re-sent notices
	if share := float64(first.Want.Duplicates) / float64(first.Want.Events); share < 0.025 || share > 0.035 {
		t.Errorf("%.1f %% duplicates before anything is sent again", share*100)
	}
	if again := s.Steps[len(s.Steps)-1]; again.Want.Events == 0 || s.Want.Duplicates != first.Want.Duplicates+again.Want.Events {
		t.Errorf("re-sent notices: %+v", again.Want)
	}
}

func TestDemoIsDeterministic(t *testing.T) {
	demo := func(seed uint64) *feed.Scenario { return feed.DemoOf(seed, 0.01) }
	if !reflect.DeepEqual(demo(7), demo(7)) {
		t.Error("two demos of one seed differ")
	}
	if reflect.DeepEqual(demo(7).Events(), demo(8).Events()) {
		t.Error("two seeds have the same events")
	}
}

// covers: F-0, F-5, F-6, F-9
func TestBad(t *testing.T) {
	for _, name := range feed.BadNames() {
		t.Run(name, func(t *testing.T) {
			st := feed.Bad(3, name)[0]
			got, r := play(t, feed.NewScenario(st))
			if st.AtLeast {
				if got.Events < st.Want.Events || got.Quarantined[feed.BadRecord] == 0 && got.Events >= 39 {
					t.Errorf("read %+v\nat least %+v", got, st.Want)
				}
			} else {
				same(t, got, st.Want)
			}
			for _, id := range st.Events() {
				if r.seen[id.String()] == 0 {
					t.Errorf("event %s did not arrive", id)
				}
			}
			if len(got.Quarantined)+len(got.Ignored) == 0 && got.Events == 0 {
				t.Error("nothing came of it")
			}
		})
	}
	t.Run("all together", func(t *testing.T) {
		names := slices.DeleteFunc(feed.BadNames(), func(name string) bool {
			return name == "broken_structure" || name == "bomb" || name == "huge_record" // not exact; slow
		})
		s := feed.NewScenario(feed.Bad(3, names...)...)
		got, _ := play(t, s)
		same(t, got, s.Want)
	})
	t.Run("a step is the same alone and among others", func(t *testing.T) {
		all := feed.Bad(3, "broken_record", "sns", "invalid_utf8")
		if !reflect.DeepEqual(all[2], feed.Bad(3, "invalid_utf8")[0]) {
			t.Error("it differs")
		}
	})
	t.Run("unknown name", func(t *testing.T) {
		defer func() {
			if recover() == nil {
				t.Error("accepted")
			}
		}()
		feed.Bad(3, "nope")
	})
}

// However a decompressor reads ahead, the object that is cut off gives 25 whole
// records and not a byte more.
func TestTruncatedIsExact(t *testing.T) {
	for seed := range uint64(20) {
		st := feed.Bad(seed, "truncated_gzip")[0]
		body := st.Objects[0].Body
		theirs, err := klauspost.NewReader(bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		ours, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for _, z := range []io.Reader{theirs, ours} {
			got, err := io.ReadAll(z)
			if !errors.Is(err, io.ErrUnexpectedEOF) || len(cut(got[len(`{"Records":[`):])) != 25 || got[len(got)-1] != '}' {
				t.Errorf("seed %d: %T gives %d bytes, %d records, %v", seed, z, len(got), len(cut(got)), err)
			}
		}
	}
}

func TestInstallFails(t *testing.T) {
	c := startCloud(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := feed.NewScenario(feed.Bad(1, "sns")...)
	if _, err := feed.Install(ctx, c, s); fault.CodeOf(err) != "demo.install_failed" {
		t.Errorf("after the context's end: %v", err)
	}
	s.Queue = "not a name"
	if _, err := feed.Install(t.Context(), c, s); fault.CodeOf(err) != "demo.install_failed" {
		t.Errorf("bad queue name: %v", err)
	}
}

package sources

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/internal/awsclient"
)

func (w *watched) findingsConfig() GuardDutyConfig {
	cfg := defaultGuardDuty()
	cfg.PollConfig = fastPoll()
	cfg.RequestsPerSecond = 500
	cfg.AWS = w.aws()
	cfg.StartTime = w.now.Add(-24 * time.Hour).Format(time.RFC3339)
	return cfg
}

// finding is a finding as GuardDuty writes it: with numbers, fields and spaces that
// no struct of the SDK would keep.
func finding(id string, at time.Time, archived bool) string {
	return fmt.Sprintf(`{"schemaVersion":"2.0", "accountId":"123456789012","region":"us-east-1","id":%q,"arn":"arn:aws:guardduty:us-east-1:123456789012:detector/d1/finding/%s","type":"Recon:EC2/PortProbe","severity":2.50,"service":{"archived":%v,"count":1e2,"newField":{"a":[null]}},"updatedAt":%q,"title":"<t> é"}`,
		id, id, archived, at.UTC().Format("2006-01-02T15:04:05.000Z"))
}

func (w *watched) find(t testing.TB, region, detector, doc string) string {
	t.Helper()
	if err := w.PutFinding(region, detector, []byte(doc)); err != nil {
		t.Fatal(err)
	}
	return doc
}

// covers: SYS-11, DEV-22, DEV-115, DEV-116, F-13: the findings of all detectors as
// they came over the wire, over pages of findings of the same moment.
func TestGuardDutyFindings(t *testing.T) {
	w := newWatched(t)
	w.CreateDetector("eu-west-1", "empty")
	var want []string
	same := w.now.Add(-5 * time.Hour)
	for i := range 130 {
		want = append(want, w.find(t, "us-east-1", "d1", finding(fmt.Sprintf("same-%03d", i), same, false)))
		want = append(want, w.find(t, "us-east-1", "d1", finding(fmt.Sprintf("old-%03d", i), w.now.Add(-time.Duration(600-i)*time.Minute), false)))
		want = append(want, w.find(t, "us-east-1", "d1", finding(fmt.Sprintf("new-%03d", i), w.now.Add(-time.Duration(i)*time.Second), false)))
	}
	want = append(want, w.find(t, "eu-west-1", "d2", finding("archived", w.now.Add(-time.Hour), true)))
	w.find(t, "us-east-1", "d1", finding("too-old", w.now.Add(-48*time.Hour), false))
	cfg := w.findingsConfig()
	cfg.Regions = []string{"us-east-1", "eu-west-1"}
	_, stop := w.run(t, "a", "guardduty", cfg, nil)
	got := w.untilRecords(t, want)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if len(got.records) != len(want) {
		t.Errorf("%d records for %d findings", len(got.records), len(want))
	}
	for _, o := range got.origins {
		if o.GetApi() != "guardduty:GetFindings" || o.GetResource() != "d1" && o.GetResource() != "d2" || o.GetRegion() == "" {
			t.Errorf("origin %v", o)
		}
	}
	// A finding that is updated is an event again. Nothing else is read after a restart
	// but the overlap, whose findings dedupe knows.
	want = append(want, w.find(t, "us-east-1", "d1", finding("old-000", time.Now(), false)))
	calls := w.Calls("GetFindings")
	w.run(t, "b", "guardduty", cfg, nil)
	w.untilRecords(t, want)
	if n := w.Calls("GetFindings") - calls; n > 20 {
		t.Errorf("%d calls after the restart: it began from the start", n)
	}
}

// age puts n findings, one a minute, the youngest an hour old.
func (w *watched) age(t testing.TB, n int) (want []string) {
	t.Helper()
	for i := range n {
		want = append(want, w.find(t, "", "d1", finding(fmt.Sprintf("f-%03d", i), w.now.Add(-time.Hour-time.Duration(n-i)*time.Minute), false)))
	}
	return want
}

func (w *watched) untilFindings(t testing.TB, want ...string) {
	t.Helper()
	eventually(t, "all findings are stored", func() bool {
		got := w.server.stored(t).distinct()
		return !slices.ContainsFunc(want, func(doc string) bool { _, there := slices.BinarySearch(got, doc); return !there })
	})
}

// covers: DEV-118, F-13: findings that were read and are updated while the others
// are paged through move to the end; none of the others is missed for that.
func TestGuardDutyMoves(t *testing.T) {
	w := newWatched(t)
	want := w.age(t, 230)
	var n atomic.Int64
	w.SetFault(func(op, _, _ string) cloud.Fault {
		if i := n.Add(1); op == "ListFindings" && i < 8 {
			for k := range 3 {
				doc := finding(fmt.Sprintf("f-%03d", int(i)*3+k), w.now.Add(time.Duration(int(i)*3+k)*time.Millisecond), false)
				if err := w.PutFinding("", "d1", []byte(doc)); err != nil {
					t.Error(err)
				}
			}
		}
		return cloud.Fault{}
	})
	w.run(t, "a", "guardduty", w.findingsConfig(), nil)
	w.untilFindings(t, want[30:]...) // the first ones may have moved before they were read
}

// covers: DEV-118, F-13: a finding that was updated after the pull had begun, or by a
// clock that is ahead, takes nothing from the overlap.
func TestGuardDutyAhead(t *testing.T) {
	w := newWatched(t)
	ahead := w.find(t, "", "d1", finding("ahead", w.now.Add(time.Hour), false))
	_, stop := w.run(t, "a", "guardduty", w.findingsConfig(), nil)
	w.untilFindings(t, ahead)
	calls := w.Calls("ListFindings")
	eventually(t, "the cursor has moved", func() bool { return w.Calls("ListFindings") > calls+1 })
	if err := stop(); err != nil {
		t.Error(err)
	}
	late := w.find(t, "", "d1", finding("late", w.now, false))
	w.run(t, "b", "guardduty", w.findingsConfig(), nil)
	w.untilFindings(t, ahead, late)
}

// covers: DEV-118, DEV-161, F-13: killed again and again in the middle of a page, throttled,
// with page tokens that expire, nothing is lost.
func TestGuardDutyTrouble(t *testing.T) {
	w := newWatched(t)
	want := w.age(t, 100)
	for i := range 110 { // within the overlap, where page tokens are used
		want = append(want, w.find(t, "", "d1", finding(fmt.Sprintf("young-%03d", i), w.now.Add(-time.Duration(i)*time.Second), false)))
	}
	var n atomic.Int64
	w.SetFault(func(op, _, _ string) cloud.Fault {
		if op != "ListFindings" {
			return cloud.Fault{}
		}
		switch n.Add(1) {
		case 5, 8:
			w.ExpirePageTokens()
		case 6:
			return cloud.Fault{Status: 429, Code: "TooManyRequestsException"}
		case 7:
			return cloud.Fault{Status: 500, Code: "InternalServerErrorException"}
		}
		return cloud.Fault{}
	})
	w.run(t, "a", "guardduty", w.findingsConfig(), frailOutboxes(8))
	w.untilFindings(t, want...)
}

// covers: F-13: archived findings are left out where that is wanted, detectors may be named.
func TestGuardDutyChoice(t *testing.T) {
	w := newWatched(t)
	w.find(t, "", "d1", finding("archived", w.now.Add(-time.Hour), true))
	w.find(t, "", "d2", finding("of another detector", w.now.Add(-time.Hour), false))
	want := w.find(t, "", "d1", finding("open", w.now.Add(-time.Hour), false))
	cfg := w.findingsConfig()
	cfg.SkipArchived, cfg.Detectors = true, []string{"d1"}
	w.run(t, "a", "guardduty", cfg, nil)
	w.untilRecords(t, []string{want})
	if w.Calls("ListDetectors") != 0 {
		t.Error("detectors were listed although they are named")
	}
}

// covers: DEV-38, DEV-161, LIM-2: credentials that have ended, a clock that is off: each
// is named, waited for, and nothing is lost.
func TestGuardDutyRefused(t *testing.T) {
	for _, tc := range []struct {
		code string
		want error
	}{
		{"ExpiredTokenException", awsclient.BadCredentials},
		{"AccessDeniedException", awsclient.AccessDenied},
		{"RequestTimeTooSkewed", awsclient.WrongClock},
	} {
		t.Run(tc.code, func(t *testing.T) {
			t.Parallel()
			w := newWatched(t)
			doc := w.find(t, "", "d1", finding("f", w.now.Add(-time.Hour), false))
			var broken atomic.Bool
			broken.Store(true)
			w.SetFault(func(op, _, _ string) cloud.Fault {
				if op != "ListDetectors" && broken.Load() {
					return cloud.Fault{Status: 403, Code: tc.code}
				}
				return cloud.Fault{}
			})
			s, _ := w.run(t, "a", "guardduty", w.findingsConfig(), nil)
			eventually(t, "the reason is named", func() bool { return errors.Is(s.Health(), tc.want) })
			broken.Store(false)
			w.untilRecords(t, []string{doc})
			eventually(t, "it is well again", func() bool { return s.Health() == nil })
		})
	}
}

// covers: DEV-149, DEV-162: every problem at once, each with its key.
func TestGuardDutyValidate(t *testing.T) {
	err := GuardDutyConfig{Regions: []string{""}, Detectors: []string{"a", "a"}, StartTime: "2026", Overlap: 25 * time.Hour}.Validate()
	if err == nil {
		t.Fatal("no problem was found")
	}
	for _, key := range []string{"period", "regions[0]", "detectors[1]", "start_time", "overlap", "discovery"} {
		if !strings.Contains(err.Error(), key) {
			t.Errorf("nothing about %s in %v", key, err)
		}
	}
	if err := defaultGuardDuty().Validate(); err != nil {
		t.Error(err)
	}
}

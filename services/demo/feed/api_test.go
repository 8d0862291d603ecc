package feed_test

import (
	"testing"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
)

// covers: DEV-16, DEV-18, DEV-22: what is fed is the same in one go and minute by
// minute, and of every kind.
func TestFillAPIs(t *testing.T) {
	from := time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)
	to := from.Add(2 * time.Hour)
	start := func() *cloud.Cloud {
		c, err := cloud.Start(t.Context(), cloud.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	whole, err := feed.FillAPIs(start(), 7, from, to)
	if err != nil {
		t.Fatal(err)
	}
	var parts feed.Watched
	c := start()
	for at := from; at.Before(to); at = at.Add(time.Minute) {
		w, err := feed.FillAPIs(c, 7, at, at.Add(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		parts.LogEvents += w.LogEvents
		parts.Points += w.Points
	}
	if parts.LogEvents != whole.LogEvents || parts.Points != whole.Points {
		t.Errorf("in parts %d log events and %d points, in one %d and %d", parts.LogEvents, parts.Points, whole.LogEvents, whole.Points)
	}
	if whole.Series == 0 || whole.Points != 120*whole.Series || whole.LogEvents < 4*2*120 {
		t.Errorf("%+v", whole)
	}
	// Five kinds, each of two hours and a bit of the hour after.
	if whole.Findings < 10 || whole.Findings > 15 {
		t.Errorf("%d findings", whole.Findings)
	}
}

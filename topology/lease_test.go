package topology

import (
	"fmt"
	"testing"
	"time"
)

// Lanes fall evenly: with eight lanes no replica may have three while another has one.
func TestHeirsAreEven(t *testing.T) {
	for lanes := 1; lanes <= 17; lanes++ {
		names := make([]string, lanes)
		for i := range names {
			names[i] = fmt.Sprint(i)
		}
		for n := 1; n <= 9; n++ {
			members := make([]string, n)
			load := map[string]int{}
			for i := range members {
				members[i] = fmt.Sprintf("host-%d-dedupe", i)
			}
			for name, heir := range heirsOf(names, members, true) {
				if load[heir]++; load[heir] > (lanes+n-1)/n {
					t.Errorf("%d lanes, %d members: %s has lane %s as its %d.", lanes, n, heir, name, load[heir])
				}
			}
			for _, m := range members {
				if load[m] < lanes/n {
					t.Errorf("%d lanes, %d members: %s has %d", lanes, n, m, load[m])
				}
			}
		}
	}
}

// A member says how often it shows that it lives; one of before does not, and has the
// time that leases have.
func TestMembersLiveByTheirOwnPace(t *testing.T) {
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	for _, c := range []struct {
		name  string
		s     sighting
		lives bool
	}{
		{"fast and fresh", sighting{value: leaseValue{Every: 600}, at: ago(time.Second)}, true},
		{"fast and silent", sighting{value: leaseValue{Every: 600}, at: ago(3 * time.Second)}, false},
		{"of before, and silent for as long", sighting{at: ago(3 * time.Second)}, true},
		{"of before, and dead", sighting{at: ago(7 * time.Second)}, false},
	} {
		if got := c.s.lives(); got != c.lives {
			t.Errorf("%s: lives is %v", c.name, got)
		}
	}
}

package parse

import (
	"fmt"
	"testing"

	"github.com/penstock/penstock/services/parse/formats"
)

// covers: pain 13
func TestDrift(t *testing.T) {
	column := func(name string) []formats.News { return []formats.News{{Kind: formats.NewsColumn, Name: name}} }
	in := &input{source: "s", format: "vpcflow", body: make([]byte, 10_000)}
	for i := range 5 {
		in.meet(column("mood"), uint32(i), uint32(i)+5000)
	}
	in.meet(append(column("mood"), formats.News{Kind: formats.NewsVersion, Name: "11"}), 7, 9)
	var d drift
	facts := d.tell(in)
	if len(facts) != 2 || facts[0].GetName() != "mood" || facts[0].GetRecords() != 6 || len(facts[0].GetSample()) != maxSample ||
		facts[1].GetKind() != "version" || facts[1].GetRecords() != 1 || len(facts[1].GetSample()) != 2 ||
		facts[0].GetSource() != "s" || facts[0].GetFormat() != "vpcflow" {
		t.Errorf("facts %v", facts)
	}
	// The sample comes once in a while, the count each time.
	if facts = d.tell(in); len(facts) != 2 || facts[0].GetSample() != nil || facts[0].GetRecords() != 6 {
		t.Errorf("the second time: %v", facts)
	}
	in.reset()
	if len(in.news) != 0 {
		t.Error("news of one frame are told of the next")
	}

	// A flood of names is bounded in a frame, and in what is remembered; nothing is lost
	// of the count.
	var flood drift
	for f := range 20 {
		in := &input{source: "s", format: "vpcflow", body: make([]byte, 10)}
		for i := range 1000 {
			in.meet(column(fmt.Sprint(f, "-", i)), 0, 10)
		}
		if len(in.news) > maxMet {
			t.Fatalf("%d names in a frame", len(in.news))
		}
		sum := uint64(0)
		for _, fact := range flood.tell(in) {
			sum += fact.GetRecords()
		}
		if sum != 1000 || len(flood.shown) > maxShown+3 {
			t.Fatalf("%d records, %d names remembered", sum, len(flood.shown))
		}
	}
}

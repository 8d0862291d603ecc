package formats

import (
	"strings"
	"testing"
)

// The format is looked for in each object: that costs no allocation for each key of its
// first record and each format.
func TestAllocationsOfChoosing(t *testing.T) {
	for name, head := range map[string]string{
		"cloudtrail": `{"Records":[{"eventVersion":"1.09","userIdentity":{"type":"IAMUser"},"eventTime":"2026-11-22T10:00:00Z","eventSource":"s3.amazonaws.com","eventName":"GetObject","awsRegion":"eu-west-1","sourceIPAddress":"192.0.2.1","userAgent":"x","requestParameters":null,"responseElements":null,"eventID":"1","readOnly":true`,
		fallback:     `{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"j":10}`,
	} {
		n := testing.AllocsPerRun(20, func() {
			if got, _, _ := Choose("", "x/y.gz", []byte(head)); got != name {
				t.Fatalf("%s is taken for %s", name, got)
			}
		})
		keys := strings.Count(head, `":`)
		t.Logf("%s: %v allocations, %d keys", name, n, keys)
		if n > 8 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

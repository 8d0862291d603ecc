package cloud

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// lookupWith posts a LookupEvents request with a signature that is there.
func lookupWith(t *testing.T, c *Cloud, auth, body string) (status int, answer map[string]any) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.URL()+"/", bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", "CloudTrail_20131101.LookupEvents")
	r.Header.Set("X-Amz-Date", "20260105T120000Z")
	if auth != "" {
		r.Header.Set("Authorization", auth)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, answer
}

// The emulated history refuses what the service refuses: the wrong answer of a
// poller must not pass its tests.
func TestCloudTrailRefuses(t *testing.T) {
	c, err := Start(t.Context(), Options{AccessKeys: []string{"AKIATEST"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	now := time.Now().Truncate(time.Second)
	for i := range 5 {
		c.CloudTrail().Add("eu-west-1", TrailEvent{ID: fmt.Sprint(i), Name: "X", Source: "s3.amazonaws.com", Time: now.Add(-time.Duration(i) * time.Minute)})
	}
	signed := func(key, headers, signature string) string {
		return "AWS4-HMAC-SHA256 Credential=" + key + "/20260105/eu-west-1/cloudtrail/aws4_request, SignedHeaders=" + headers + ", Signature=" + signature
	}
	const headers = "content-type;host;x-amz-date;x-amz-target"
	good := signed("AKIATEST", headers, strings.Repeat("0", 64))
	span := fmt.Sprintf(`"StartTime":%d,"EndTime":%d`, now.Add(-time.Hour).Unix(), now.Unix())
	tests := []struct {
		name, auth, body, code string
	}{
		{"not signed", "", "{}", "MissingAuthenticationTokenException"},
		{"without a signature", signed("AKIATEST", headers, ""), "{}", "IncompleteSignatureException"},
		{"date not signed", signed("AKIATEST", "host", strings.Repeat("0", 64)), "{}", "IncompleteSignatureException"},
		{"unknown key", signed("AKIAOTHER", headers, strings.Repeat("0", 64)), "{}", "InvalidClientTokenId"},
		{"unknown field", good, `{"Startime":1}`, "SerializationException"},
		{"too many results", good, `{"MaxResults":51}`, "InvalidMaxResultsException"},
		{"two attributes", good, `{"LookupAttributes":[{"AttributeKey":"EventName","AttributeValue":"a"},{"AttributeKey":"EventName","AttributeValue":"b"}]}`, "InvalidLookupAttributesException"},
		{"unknown attribute", good, `{"LookupAttributes":[{"AttributeKey":"Colour","AttributeValue":"a"}]}`, "InvalidLookupAttributesException"},
		{"unknown category", good, `{"EventCategory":"data"}`, "InvalidEventCategoryException"},
		{"ends before it begins", good, `{"StartTime":1767600000,"EndTime":1767500000}`, "InvalidTimeRangeException"},
		{"more than 90 days back", good, `{"StartTime":1000000000}`, "InvalidTimeRangeException"},
		{"made-up token", good, `{` + span + `,"NextToken":"abc"}`, "InvalidNextTokenException"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if status, answer := lookupWith(t, c, tc.auth, tc.body); status < 400 || answer["__type"] != tc.code {
				t.Errorf("%d %v, want %s", status, answer, tc.code)
			}
		})
	}

	_, first := lookupWith(t, c, good, `{`+span+`,"MaxResults":3}`)
	token, _ := first["NextToken"].(string)
	if events, _ := first["Events"].([]any); len(events) != 3 || token == "" {
		t.Fatalf("first page %v", first)
	}
	rest := func(span string) (int, map[string]any) {
		return lookupWith(t, c, good, `{`+span+`,"MaxResults":3,"NextToken":"`+token+`"}`)
	}
	if _, second := rest(span); len(second["Events"].([]any)) != 2 || second["NextToken"] != nil {
		t.Errorf("second page %v", second)
	}
	if status, other := rest(`"EndTime":` + fmt.Sprint(now.Unix())); status < 400 {
		t.Errorf("a token was taken with other parameters: %v", other)
	}
	c.CloudTrail().ExpireTokens()
	if status, late := rest(span); status < 400 {
		t.Errorf("a token was taken after it had expired: %v", late)
	}
	c.CloudTrail().Limit(0.001)
	_, _ = lookupWith(t, c, good, `{`+span+`}`)
	if status, answer := lookupWith(t, c, good, `{`+span+`}`); status < 400 || answer["__type"] != "ThrottlingException" {
		t.Errorf("the second call in a row: %d %v", status, answer)
	}
}

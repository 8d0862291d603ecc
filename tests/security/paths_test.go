package security

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/tests/harness"
)

// Keys of objects, types and texts of events, and names that senders give choose no path:
// not that of a file, nor of an object, nor one outside of the prefix of a bucket, nor
// through a link. Exports overwrite nothing.
//
// covers: design section 8
func TestNoPathIsChosenByData(t *testing.T) {
	takesLong(t)
	w := harness.NewWorld(t, nil)
	const lake = "lake"
	if err := w.Cloud.CreateBucket(lake, cloud.BucketOptions{}); err != nil {
		t.Fatal(err)
	}
	receiver := harness.FreeAddr(t)
	w.Source = fmt.Sprintf("  - {name: push, type: http, address: %q, auth: none, auto_event_type: true, endpoints: [{path: /in, kind: json, format: json}, {path: /hec, kind: splunk_hec}, {path: /form, kind: form, format: json}]}\n", receiver)
	w.Destination = fmt.Sprintf(`  - {name: files, type: file, path: %q}
  - name: lake
    type: s3
    bucket: lake
    prefix: tenant
    key: "{type}/{source}/{account}/{region}/{yyyy}-{id}"
    batch: {age: 0s}
    compression: none
    aws: {endpoint_url: %q, path_style: true, region: us-east-1, access_key: AKIATEST, access_secret: s}
`, filepath.Join(w.Dir, "sink", "{destination}.ndjson"), w.Cloud.URL())
	w.RunAll()

	climbs := []string{"../../../../climbed", "..\\..\\climbed", "/climbed", "a/../../climbed", "....//climbed", "%2e%2e%2fclimbed", "a\x00climbed", ".climbed", "~/climbed", "climbed/.", "..", "con", "\u202eclimbed"}
	for i, climb := range climbs {
		body := fmt.Sprintf(`{"Records":[{"eventID":"%d","eventTime":"2026-11-20T08:00:00Z","eventName":%s,"eventSource":%s,"awsRegion":%s,"recipientAccountId":%s}]}`,
			i, quoted(climb), quoted(climb+".amazonaws.com"), quoted(climb), quoted(climb))
		if _, err := w.Cloud.Put(harness.Bucket, "AWSLogs/"+climb+".json", cloud.Object{Body: []byte(body)}); err != nil {
			if _, err := w.Cloud.Put(harness.Bucket, fmt.Sprintf("AWSLogs/%d.json", i), cloud.Object{Body: []byte(body)}); err != nil {
				t.Fatal(err)
			}
		}
		fetch(t, http.MethodPost, "http://"+receiver+"/hec/services/collector", fmt.Sprintf(`{"event":"n%d","host":%s,"source":%s,"sourcetype":%s,"index":%s}`, i, quoted(climb), quoted(climb), quoted(climb), quoted(climb)))
		fetch(t, http.MethodPost, "http://"+receiver+"/form", "--b\r\nContent-Disposition: form-data; name=\""+"x"+"\"; filename=\"../../climbed\"\r\n\r\n{\"n\":"+fmt.Sprint(i)+"}\r\n--b--\r\n", "Content-Type", "multipart/form-data; boundary=b")
	}
	w.AwaitDelivered(time.Minute, len(climbs))
	harness.Await(t, time.Minute, "objects are in the lake", func() bool { return len(w.Cloud.Keys(lake)) >= len(climbs) })
	for _, key := range w.Cloud.Keys(lake) {
		if !strings.HasPrefix(key, "tenant/") || strings.Contains(key, "/../") || strings.Contains(key, "/./") || strings.Contains(key, "//") || strings.ContainsAny(key, "\x00\\%~\u202e") || strings.Count(key, "/") != 5 {
			t.Errorf("the lake has %q", key)
		}
	}
	known := map[string]bool{"all.yaml": true, "store": true, "sink": true}
	entries, err := os.ReadDir(w.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !known[e.Name()] {
			t.Errorf("there is a %q", e.Name())
		}
	}
	_ = filepath.WalkDir(filepath.Dir(filepath.Dir(w.Dir)), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), "climbed") {
			t.Errorf("%s was written", path)
		}
		if d != nil && d.IsDir() && path != w.Dir && !strings.HasPrefix(path, filepath.Dir(w.Dir)) {
			return fs.SkipDir // of others
		}
		return nil
	})

	// An export goes to a new file: not over one, nor through a link.
	store := filepath.Join(w.Dir, "store")
	precious, link := filepath.Join(t.TempDir(), "precious"), filepath.Join(t.TempDir(), "link")
	if err := os.WriteFile(precious, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(precious, link); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{precious, link} {
		if _, _, code := harness.Run(t, nil, "quarantine", "export", "--store", store, "--output", to); code == 0 {
			t.Errorf("an export goes over %s", to)
		}
	}
	if data, err := os.ReadFile(precious); err != nil || string(data) != "precious" {
		t.Errorf("the file holds %q, %v", data, err)
	}
}

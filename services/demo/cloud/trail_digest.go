package cloud

import (
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/md5" //nolint:gosec // fingerprints of keys look like one; nothing hangs on it
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// TrailDigests is a trail in one region that writes digest files: each hour one, which
// names the log files of that hour with their hashes and is signed with a key of its own,
// which ListPublicKeys tells.
// Source: AWS CloudTrail User Guide, "CloudTrail digest file structure".
type TrailDigests struct {
	cloud *Cloud
	// Bucket and Prefix, which ends in a slash unless it is empty, of all files.
	bucket, prefix          string
	account, region, trail  string
	key                     *rsa.PrivateKey
	fingerprint             string
	lastKey, lastHash, last string
}

// trailKey is a public key as ListPublicKeys has it, of a region.
type trailKey struct {
	Value             []byte
	Fingerprint       string
	ValidityStartTime time.Time
	ValidityEndTime   time.Time
	validIn           string
}

// StartTrail begins a trail with digest files.
func (c *Cloud) StartTrail(bucket, prefix, account, region, trail string) (*TrailDigests, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	der := x509.MarshalPKCS1PublicKey(&key.PublicKey)
	sum := md5.Sum(der) //nolint:gosec // see above
	t := &TrailDigests{
		cloud: c, bucket: bucket, prefix: prefix, account: account, region: region, trail: trail, key: key, fingerprint: hex.EncodeToString(sum[:]),
	}
	h := c.CloudTrail()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keys = append(h.keys, trailKey{
		Value: der, Fingerprint: t.fingerprint, validIn: region,
		ValidityStartTime: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), ValidityEndTime: time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC),
	})
	return t, nil
}

// PublicKeys are what `aws cloudtrail list-public-keys` prints of a trail.
func (t *TrailDigests) PublicKeys() []byte {
	data, _ := json.Marshal(map[string]any{"PublicKeyList": []map[string]any{{ // bytes and texts
		"Value": x509.MarshalPKCS1PublicKey(&t.key.PublicKey), "Fingerprint": t.fingerprint,
		"ValidityStartTime": "2020-01-01T00:00:00Z", "ValidityEndTime": "2040-01-01T00:00:00Z",
	}}})
	return data
}

// LogKey is the key of a log file that the trail delivers at a time.
func (t *TrailDigests) LogKey(at time.Time, unique string) string {
	at = at.UTC()
	return fmt.Sprintf("%sAWSLogs/%s/CloudTrail/%s/%s/%s_CloudTrail_%s_%s_%s.json.gz",
		t.prefix, t.account, t.region, at.Format("2006/01/02"), t.account, t.region, at.Format("20060102T1504Z"), unique)
}

// DigestKey is the key of the digest file of the hour that ends at a time.
func (t *TrailDigests) DigestKey(end time.Time) string {
	end = end.UTC()
	return fmt.Sprintf("%sAWSLogs/%s/CloudTrail-Digest/%s/%s/%s_CloudTrail-Digest_%s_%s_%s_%s.json.gz",
		t.prefix, t.account, t.region, end.Format("2006/01/02"), t.account, t.region, t.trail, t.region, end.Format("20060102T150405Z"))
}

// Break has the next digest file begin a new chain, as after a stop of the trail.
func (t *TrailDigests) Break() { t.lastKey, t.lastHash, t.last = "", "", "" }

// Digest writes the digest file of a time, with log files that are in the bucket. It
// returns its key.
func (t *TrailDigests) Digest(start, end time.Time, logs ...string) (string, error) {
	key := t.DigestKey(end)
	files := []map[string]any{}
	for _, log := range logs {
		o, ok := t.cloud.Get(t.bucket, log)
		if !ok {
			return "", fmt.Errorf("there is no log file %s", log)
		}
		z, err := gzip.NewReader(bytes.NewReader(o.Body))
		if err != nil {
			return "", err
		}
		content, err := io.ReadAll(z)
		if err != nil {
			return "", err
		}
		files = append(files, map[string]any{
			"s3Bucket": t.bucket, "s3Object": log, "hashValue": hashOf(content), "hashAlgorithm": "SHA-256",
			"newestEventTime": end.UTC().Format(time.RFC3339), "oldestEventTime": start.UTC().Format(time.RFC3339),
		})
	}
	d := map[string]any{
		"awsAccountId": t.account, "digestStartTime": start.UTC().Format(time.RFC3339), "digestEndTime": end.UTC().Format(time.RFC3339),
		"digestS3Bucket": t.bucket, "digestS3Object": key, "digestPublicKeyFingerprint": t.fingerprint, "digestSignatureAlgorithm": "SHA256withRSA",
		"newestEventTime": nil, "oldestEventTime": nil, "previousDigestS3Bucket": nil, "previousDigestS3Object": nil,
		"previousDigestHashValue": nil, "previousDigestHashAlgorithm": nil, "previousDigestSignature": nil, "logFiles": files,
	}
	previous := "null"
	if t.lastKey != "" {
		d["previousDigestS3Bucket"], d["previousDigestS3Object"] = t.bucket, t.lastKey
		d["previousDigestHashValue"], d["previousDigestHashAlgorithm"], d["previousDigestSignature"] = t.lastHash, "SHA-256", t.last
		previous = t.last
	}
	content, err := json.Marshal(d)
	if err != nil {
		return "", err
	}
	text := strings.Join([]string{end.UTC().Format(time.RFC3339), t.bucket + "/" + key, hashOf(content), previous}, "\n")
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, t.key, crypto.SHA256, sum[:])
	if err != nil {
		return "", err
	}
	var stored bytes.Buffer
	z := gzip.NewWriter(&stored)
	_, _ = z.Write(content) // into memory
	_ = z.Close()
	t.lastKey, t.lastHash, t.last = key, hashOf(content), hex.EncodeToString(signature)
	_, err = t.cloud.Put(t.bucket, key, Object{
		Body: stored.Bytes(), Modified: end.Add(10 * time.Minute), Quiet: true,
		Metadata: map[string]string{"signature": t.last, "signature-algorithm": "SHA256withRSA"},
	})
	return key, err
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// keysRequest is one to ListPublicKeys. Its times are seconds, as those of LookupEvents.
type keysRequest struct {
	StartTime *float64
	EndTime   *float64
	NextToken string
}

// listKeys answers ListPublicKeys: the keys of the region that were valid in the time.
func (t *EventHistory) listKeys(call *apiCall) (any, *apiError) {
	var r keysRequest
	if e := call.decode(&r); e != nil {
		return nil, e
	}
	keys := []map[string]any{}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range t.keys {
		start, end := float64(k.ValidityStartTime.Unix()), float64(k.ValidityEndTime.Unix())
		if k.validIn != call.region || r.StartTime != nil && end < *r.StartTime || r.EndTime != nil && start > *r.EndTime {
			continue
		}
		keys = append(keys, map[string]any{"Value": k.Value, "Fingerprint": k.Fingerprint, "ValidityStartTime": start, "ValidityEndTime": end})
	}
	return map[string]any{"PublicKeyList": keys}, nil
}

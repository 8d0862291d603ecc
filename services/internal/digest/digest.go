// Package digest checks the files by which CloudTrail proves what log files it wrote:
// each digest file names the log files of an hour with their hashes, is signed, and
// names the digest file before it with its hash and signature. So a log file or a digest
// file that is missing or was altered is proven, back to the beginning of the chain.
//
// Source: AWS CloudTrail User Guide, "CloudTrail digest file structure" and "Custom
// implementations of CloudTrail log file integrity validation".
package digest

import (
	"compress/gzip"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/penstock/penstock/messages/fault"
)

// What may be wrong. They are labels of findings.
const (
	// Altered: the digest file is not what was signed, or was moved.
	Altered = "digest_altered"
	// Missing: the next one names it, and it is not there.
	Missing = "digest_missing"
	// Gap: a chain begins anew, or does not reach to the end of the time asked for: no log
	// file of the time between is proven.
	Gap = "digest_gap"
	// KeyUnknown: no public key has its fingerprint.
	KeyUnknown = "digest_key_unknown"
	// LogMissing: the digest file names it, and it is not there.
	LogMissing = "log_missing"
	// LogUnread: the source may not read the bucket that it is in.
	LogUnread = "log_not_readable"
	// LogAltered: its bytes are not those that were signed.
	LogAltered = "log_altered"
)

// Limits of what is read. Unit: bytes, decompressed.
const (
	MaxFile = 64 << 20
	maxLog  = 4 << 30
)

var (
	errFile = fault.Define("digest.unreadable", fault.Reject,
		"look at the object: it is named like a digest file of CloudTrail and is none")
	// ErrSignature is that of a digest file that is not what was signed.
	ErrSignature = fault.Define("digest.altered", fault.Reject,
		"somebody has changed the digest file, its metadata or its place; look at who wrote to the bucket (S3 data events)")
	errKey = fault.Define("digest.bad_key", fault.Reject,
		"use public keys as `aws cloudtrail list-public-keys` prints them")
)

// File is a digest file.
type File struct {
	Account            string    `json:"awsAccountId"`
	Start              string    `json:"digestStartTime"`
	End                string    `json:"digestEndTime"`
	Bucket             string    `json:"digestS3Bucket"`
	Key                string    `json:"digestS3Object"`
	Fingerprint        string    `json:"digestPublicKeyFingerprint"`
	Algorithm          string    `json:"digestSignatureAlgorithm"`
	PreviousBucket     *string   `json:"previousDigestS3Bucket"`
	PreviousKey        *string   `json:"previousDigestS3Object"`
	PreviousHash       *string   `json:"previousDigestHashValue"`
	PreviousHashAlgo   *string   `json:"previousDigestHashAlgorithm"`
	PreviousSignature  *string   `json:"previousDigestSignature"`
	Logs               []Log     `json:"logFiles"`
	StartTime, EndTime time.Time `json:"-"`
	// Hash is that of the file's content, in hex, and Signature what its metadata says.
	Hash      string `json:"-"`
	Signature string `json:"-"`
}

// Log is a log file as a digest file names it.
type Log struct {
	Bucket    string `json:"s3Bucket"`
	Key       string `json:"s3Object"`
	Hash      string `json:"hashValue"`
	Algorithm string `json:"hashAlgorithm"`
}

// Read reads a digest file as it is stored. Signature is the object's metadata of that name.
func Read(stored io.Reader, signature string) (*File, error) {
	z, err := gzip.NewReader(stored)
	if err != nil {
		return nil, errFile.New(err, "decompress a digest file")
	}
	content, err := io.ReadAll(io.LimitReader(z, MaxFile+1))
	if err != nil {
		return nil, errFile.New(err, "decompress a digest file")
	}
	if len(content) > MaxFile {
		return nil, errFile.New(nil, "read a digest file of more than %d bytes", MaxFile)
	}
	f := &File{Signature: strings.ToLower(signature)}
	if err := json.Unmarshal(content, f); err != nil {
		return nil, errFile.New(err, "read a digest file")
	}
	sum := sha256.Sum256(content)
	f.Hash = hex.EncodeToString(sum[:])
	var startErr, endErr error
	f.StartTime, startErr = time.Parse(time.RFC3339, f.Start)
	f.EndTime, endErr = time.Parse(time.RFC3339, f.End)
	if startErr != nil || endErr != nil || f.Fingerprint == "" {
		return nil, errFile.New(errors.Join(startErr, endErr), "read a digest file: a field that it must have is missing")
	}
	return f, nil
}

// Signed is the text that is signed.
func (f *File) Signed() string {
	previous := "null" // of the first in a chain
	if f.PreviousSignature != nil {
		previous = *f.PreviousSignature
	}
	return f.End + "\n" + f.Bucket + "/" + f.Key + "\n" + f.Hash + "\n" + previous
}

// Verify tells whether the file that was found at a place is what was signed.
func (f *File) Verify(bucket, key string, public *rsa.PublicKey) error {
	if f.Bucket != bucket || f.Key != key {
		return ErrSignature.New(nil, "check s3://%s/%s: it was written as another object", bucket, key)
	}
	if f.Algorithm != "" && f.Algorithm != "SHA256withRSA" {
		return ErrSignature.New(nil, "check s3://%s/%s: its signature is of a kind that is not known", bucket, key)
	}
	signature, err := hex.DecodeString(f.Signature)
	if err != nil || len(signature) == 0 {
		return ErrSignature.New(err, "check s3://%s/%s: it has no signature", bucket, key)
	}
	sum := sha256.Sum256([]byte(f.Signed()))
	if err := rsa.VerifyPKCS1v15(public, crypto.SHA256, sum[:], signature); err != nil {
		return ErrSignature.New(err, "check the signature of s3://%s/%s", bucket, key)
	}
	return nil
}

// First tells whether a chain begins with the file.
func (f *File) First() bool { return f.PreviousKey == nil || *f.PreviousKey == "" }

// Follows tells whether f names what was read as the one before it: by place, hash and
// signature. Why says what does not fit.
func (f *File) Follows(before *Link) (why string) {
	switch {
	case f.First():
		return "it begins a new chain"
	case deref(f.PreviousKey) != before.Key:
		return "it names another one before it"
	case deref(f.PreviousHash) != before.Hash:
		return "the one before it has another hash than this one says"
	case !strings.EqualFold(deref(f.PreviousSignature), before.Signature):
		return "the one before it has another signature than this one says"
	}
	return ""
}

// SignatureBefore is that of the digest file before, as f says it.
func (f *File) SignatureBefore() string { return deref(f.PreviousSignature) }

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// Link is what has to be kept of a digest file to check the next.
type Link struct {
	Key       string    `json:"key"`
	Hash      string    `json:"hash"`
	Signature string    `json:"signature"`
	End       time.Time `json:"end"`
	// Bad: something is wrong with it and was said.
	Bad bool `json:"bad,omitempty"`
}

// Link returns it.
func (f *File) Link() *Link {
	return &Link{Key: f.Key, Hash: f.Hash, Signature: f.Signature, End: f.EndTime}
}

// HashLog returns the hash of a log file, in hex, from the object as it is stored: that of
// its decompressed content.
func HashLog(stored io.Reader) (string, error) {
	z, err := gzip.NewReader(stored)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(z, maxLog+1))
	if err != nil {
		return "", err
	}
	if n > maxLog {
		return "", fmt.Errorf("it has more than %d bytes", int64(maxLog))
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// PublicKey reads a key as CloudTrail has it: PKCS #1, DER.
func PublicKey(der []byte) (*rsa.PublicKey, error) {
	key, err := x509.ParsePKCS1PublicKey(der)
	if err != nil {
		return nil, errKey.New(err, "read a public key")
	}
	return key, nil
}

// ReadKeys reads public keys from what `aws cloudtrail list-public-keys` prints, by their
// fingerprints.
func ReadKeys(data []byte) (map[string][]byte, error) {
	var list struct {
		PublicKeyList []struct {
			Value       []byte
			Fingerprint string
		}
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, errKey.New(err, "read public keys")
	}
	keys := map[string][]byte{}
	for _, k := range list.PublicKeyList {
		if _, err := PublicKey(k.Value); err != nil {
			return nil, err
		}
		keys[k.Fingerprint] = k.Value
	}
	if len(keys) == 0 {
		return nil, errKey.New(nil, "read public keys: there are none")
	}
	return keys, nil
}

// Name is what the key of a digest file tells.
type Name struct {
	// Chain is the same for all of a chain: account, regions and trail, and the folder
	// that they are in.
	Chain string
	// Region whose events it proves, Home that of the trail.
	Region, Home string
	// End of the hour.
	End time.Time
}

var nameForm = regexp.MustCompile(`^(.*/CloudTrail-Digest/([a-z0-9-]+)/)\d{4}/\d{2}/\d{2}/([^/]*_CloudTrail-Digest_[^/]*_([a-z]+(?:-[a-z]+)+-\d+))_(\d{8}T\d{6}Z)(_backfill)?\.json\.gz$`)

// NameOf takes the key of a digest file apart; false when it is none.
func NameOf(key string) (Name, bool) {
	m := nameForm.FindStringSubmatch(key)
	if m == nil {
		return Name{}, false
	}
	end, err := time.Parse("20060102T150405Z", m[5])
	if err != nil {
		return Name{}, false
	}
	// Those that were delivered later, for log files that had been late, are no part of
	// the chain of the others.
	return Name{Chain: m[1] + m[3] + m[6], Region: m[2], Home: m[4], End: end}, true
}

// Backfill tells whether a chain is of files for late log files.
func (n Name) Backfill() bool { return strings.HasSuffix(n.Chain, "_backfill") }

package digest

import (
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func zipped(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	_, err = z.Write([]byte(text))
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const (
	exampleKey = "AWSLogs/111122223333/CloudTrail-Digest/us-east-2/2015/08/17/111122223333_CloudTrail-Digest_us-east-2_my_trail_us-east-2_20150817T150131Z.json.gz"
	example    = `{"awsAccountId":"111122223333","digestStartTime":"2015-08-17T14:01:31Z","digestEndTime":"2015-08-17T15:01:31Z",` +
		`"digestS3Bucket":"logs","digestS3Object":"` + exampleKey + `","digestPublicKeyFingerprint":"31e8b5433410dfb61a9dc45cc65b22ff",` +
		`"digestSignatureAlgorithm":"SHA256withRSA","previousDigestS3Bucket":"logs","previousDigestS3Object":"before","previousDigestHashValue":"97fb",` +
		`"previousDigestHashAlgorithm":"SHA-256","previousDigestSignature":"5088","logFiles":[{"s3Bucket":"logs","s3Object":"a.json.gz","hashValue":"9bb6","hashAlgorithm":"SHA-256"}]}`
)

// covers: pain 9: the string that is signed, by the description of AWS.
func TestSigned(t *testing.T) {
	sum := sha256.Sum256([]byte(example))
	for name, c := range map[string]struct{ text, previous string }{
		"in a chain":        {example, "5088"},
		"first of a chain":  {strings.Replace(example, `"previousDigestSignature":"5088"`, `"previousDigestSignature":null`, 1), "null"},
		"without the field": {strings.Replace(example, `"previousDigestSignature":"5088",`, ``, 1), "null"},
	} {
		f, err := Read(bytes.NewReader(zipped(t, c.text)), "AB")
		if err != nil {
			t.Fatal(name, err)
		}
		own := sha256.Sum256([]byte(c.text))
		if want := "2015-08-17T15:01:31Z\nlogs/" + exampleKey + "\n" + hex.EncodeToString(own[:]) + "\n" + c.previous; f.Signed() != want {
			t.Errorf("%s: signed is\n%s\nwant\n%s", name, f.Signed(), want)
		}
	}
	f, err := Read(bytes.NewReader(zipped(t, example)), "AB")
	if err != nil || f.Hash != hex.EncodeToString(sum[:]) || f.Signature != "ab" || len(f.Logs) != 1 || f.EndTime.Sub(f.StartTime) != time.Hour {
		t.Errorf("read %+v, %v", f, err)
	}
}

// covers: pain 9
func TestVerify(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	read := func(text, signature string) *File {
		f, err := Read(bytes.NewReader(zipped(t, text)), signature)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	sum := sha256.Sum256([]byte(read(example, "").Signed()))
	raw, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := hex.EncodeToString(raw)
	public, err := PublicKey(x509.MarshalPKCS1PublicKey(&key.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		f           *File
		bucket, key string
		public      *rsa.PublicKey
		good        bool
	}{
		"as signed":         {read(example, signature), "logs", exampleKey, public, true},
		"upper case":        {read(example, strings.ToUpper(signature)), "logs", exampleKey, public, true},
		"another key":       {read(example, signature), "logs", exampleKey, &other.PublicKey, false},
		"moved":             {read(example, signature), "logs", exampleKey + "x", public, false},
		"another bucket":    {read(example, signature), "logs2", exampleKey, public, false},
		"a log file less":   {read(strings.Replace(example, "a.json.gz", "b.json.gz", 1), signature), "logs", exampleKey, public, false},
		"another time":      {read(strings.Replace(example, "15:01:31Z\",", "15:01:32Z\",", 1), signature), "logs", exampleKey, public, false},
		"another before":    {read(strings.Replace(example, "5088", "5089", 1), signature), "logs", exampleKey, public, false},
		"no signature":      {read(example, ""), "logs", exampleKey, public, false},
		"no hex":            {read(example, "zz"), "logs", exampleKey, public, false},
		"another algorithm": {read(strings.Replace(example, "SHA256withRSA", "MD5withRSA", 1), signature), "logs", exampleKey, public, false},
	}
	for name, c := range tests {
		if err := c.f.Verify(c.bucket, c.key, c.public); (err == nil) != c.good || err != nil && !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// covers: pain 9
func TestFollows(t *testing.T) {
	f, err := Read(bytes.NewReader(zipped(t, example)), "ab")
	if err != nil {
		t.Fatal(err)
	}
	for want, before := range map[string]*Link{
		"":              {Key: "before", Hash: "97fb", Signature: "5088"},
		"names another": {Key: "other", Hash: "97fb", Signature: "5088"},
		"another hash":  {Key: "before", Hash: "97fc", Signature: "5088"},
		"another sign":  {Key: "before", Hash: "97fb", Signature: "5089"},
	} {
		if why := f.Follows(before); (why == "") != (want == "") || !strings.Contains(why, want) {
			t.Errorf("want %q, got %q", want, why)
		}
	}
}

// covers: pain 9
func TestReadBadFiles(t *testing.T) {
	for name, b := range map[string][]byte{
		"no gzip": []byte("x"), "cut": zipped(t, example)[:100], "no JSON": zipped(t, "x"), "empty": zipped(t, "{}"),
		"no time":   zipped(t, strings.Replace(example, "2015-08-17T15:01:31Z", "soon", 1)),
		"too large": zipped(t, strings.Repeat(" ", MaxFile+1)),
	} {
		if _, err := Read(bytes.NewReader(b), ""); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, data := range map[string]string{"no JSON": "x", "none": `{"PublicKeyList":[]}`, "no key": `{"PublicKeyList":[{"Value":"AAAA","Fingerprint":"f"}]}`} {
		if _, err := ReadKeys([]byte(data)); err == nil {
			t.Errorf("keys, %s: no error", name)
		}
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der := x509.MarshalPKCS1PublicKey(&key.PublicKey)
	keys, err := ReadKeys(fmt.Appendf(nil, `{"PublicKeyList":[{"Value":%q,"Fingerprint":"f","ValidityStartTime":1}]}`, base64.StdEncoding.EncodeToString(der)))
	if err != nil || !bytes.Equal(keys["f"], der) {
		t.Errorf("keys %v, %v", keys, err)
	}
}

// covers: pain 9
func TestNameOf(t *testing.T) {
	for key, want := range map[string]string{
		exampleKey: "AWSLogs/111122223333/CloudTrail-Digest/us-east-2/111122223333_CloudTrail-Digest_us-east-2_my_trail_us-east-2 us-east-2 us-east-2 15:01:31",
		"p/AWSLogs/o-1/1/CloudTrail-Digest/us-gov-west-1/2020/01/02/1_CloudTrail-Digest_us-gov-west-1_t.1_eu-west-1_20200102T030405Z_backfill.json.gz": "p/AWSLogs/o-1/1/CloudTrail-Digest/us-gov-west-1/1_CloudTrail-Digest_us-gov-west-1_t.1_eu-west-1_backfill us-gov-west-1 eu-west-1 03:04:05",
		"AWSLogs/1/CloudTrail/us-east-2/2015/08/17/1_CloudTrail_us-east-2_20150817T1501Z_x.json.gz":                                                    "",
		strings.Replace(exampleKey, "0817T15", "1317T15", 1):                                                                                           "",
	} {
		n, ok := NameOf(key)
		got := ""
		if ok {
			got = n.Chain + " " + n.Region + " " + n.Home + " " + n.End.Format(time.TimeOnly)
		}
		if got != want {
			t.Errorf("%s:\n%s, want\n%s", key, got, want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(example), "ab", exampleKey)
	f.Add([]byte("{}"), "", "AWSLogs/")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, content []byte, signature, name string) {
		_, _ = NameOf(name) // any key
		file, err := Read(bytes.NewReader(zipped(t, string(content))), signature)
		if err != nil {
			return
		}
		if file.Verify(file.Bucket, file.Key, &key.PublicKey) == nil {
			t.Error("nobody has signed this with the key")
		}
	})
}

package feed

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
)

// This file makes objects in the sizes that busy systems leave behind, for the
// benchmark: [Systems] shows every case in a few rows, these have a thousand times as
// many of the usual one. Object i of a seed is always the same.

// The salts of bulk, apart from those of the samples.
const (
	saltBulkVPC uint64 = iota + 1000
	saltBulkCloudFront
	saltBulkUmbrella
)

// bulkPool is how many interfaces, hosts or paths an object has: a few are most of it,
// which is why it compresses as real ones do.
const bulkPool = 60

// row is a line under construction.
type row []byte

func (r row) text(s string) row { return append(r, s...) }
func (r row) num(n int) row     { return strconv.AppendInt(r, int64(n), 10) }

// addr is an address of the range for benchmarks. Source: RFC 2544, appendix C.
func (r row) addr(n int) row {
	return r.text("198.").num(18 + n>>16&1).text(".").num(n >> 8 & 255).text(".").num(n & 255)
}

// private is an address of a private network. Source: RFC 1918.
func (r row) private(n int) row { return r.text("10.0.").num(n >> 8 & 255).text(".").num(n & 255) }

// BulkVPCFlow is object i of flow logs in the default format, about 120 bytes a row.
// Source: formats F-21.
func BulkVPCFlow(seed uint64, i, rows int) Object {
	w := newWriter(seed, saltBulkVPC, uint64(i))
	at := systemStart.Add(time.Duration(i) * 5 * time.Minute)
	w.buf.WriteString("version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status\n")
	var interfaces [bulkPool]string
	for k := range interfaces {
		interfaces[k] = "eni-" + string(w.appendHex(nil, 17))
	}
	var b row
	for range rows {
		start := int(at.Unix()) + w.below(240)
		n := w.below(bulkPool)
		packets := 1 + w.below(90)
		b = b[:0].text("2 " + cloud.AccountID + " ").text(interfaces[n]).text(" ").private(n).text(" ").addr(w.below(4000))
		b = b.text(" ").num(1024 + w.below(64_000)).text(" ").text(w.pick("443", "443", "443", "22", "53", "5432", "8080")).text(" 6 ").num(packets)
		b = b.text(" ").num(packets * (40 + w.below(1400))).text(" ").num(start).text(" ").num(start + 20 + w.below(40))
		b = b.text(w.pick(" ACCEPT OK\n", " ACCEPT OK\n", " ACCEPT OK\n", " REJECT OK\n"))
		w.buf.Write(b)
	}
	w.rows = rows
	return w.object("", fmt.Sprintf("AWSLogs/%s/vpcflowlogs/eu-west-1/%s/%s_vpcflowlogs_eu-west-1_fl-0a1b2c3d_%s_%s.log.gz",
		cloud.AccountID, at.Format("2006/01/02"), cloud.AccountID, at.Format("20060102T1504Z"), w.appendHex(nil, 8)))
}

// BulkCloudFront is object i of access logs, about 380 bytes a row. Source: formats F-11.
func BulkCloudFront(seed uint64, i, rows int) Object {
	w := newWriter(seed, saltBulkCloudFront, uint64(i))
	at := systemStart.Add(time.Duration(i) * 5 * time.Minute)
	w.buf.WriteString("#Version: 1.0\n#Fields: " + cloudFrontFields + "\n")
	agents := []string{
		"Mozilla/5.0%20(X11;%20Linux%20x86_64)%20AppleWebKit/537.36%20(KHTML,%20like%20Gecko)%20Chrome/120.0.0.0%20Safari/537.36",
		"Mozilla/5.0%20(iPhone;%20CPU%20iPhone%20OS%2017_2%20like%20Mac%20OS%20X)%20AppleWebKit/605.1.15", "curl/8.5.0",
	}
	var b row
	for range rows {
		t := at.Add(time.Duration(w.below(300)) * time.Second)
		result, size, took := w.pick("Hit", "Hit", "Hit", "Miss", "Error"), 200+w.below(90_000), w.below(1000)
		b = t.AppendFormat(b[:0], "2006-01-02\t15:04:05\t")
		b = b.text(w.pick("LHR50-P1", "FRA56-P4", "IAD79-C2")).text("\t").num(size).text("\t").addr(w.below(4000)).text(w.pick("\tGET", "\tGET", "\tPOST"))
		b = b.text("\td111111abcdef8.cloudfront.net\t/assets/app/").num(w.below(bulkPool)).text(w.pick(".js\t", ".css\t", ".html\t"))
		b = b.text(w.pick("200", "200", "304", "404")).text("\thttps://www.example.org/\t").text(agents[w.below(len(agents))]).text("\t-\t-\t").text(result)
		b = w.appendFrom(b.text("\t"), base64Letters, 54)
		b = b.text("==\td111111abcdef8.cloudfront.net\thttps\t").num(20 + w.below(400)).text("\t0.").num(100 + took%900).text("\t-\tTLSv1.3\tTLS_AES_128_GCM_SHA256\t")
		b = b.text(result).text("\tHTTP/2.0\t-\t-\t").num(1024 + w.below(64_000)).text("\t0.").num(100 + took%900).text("\t").text(result)
		b = b.text("\ttext/html\t").num(size).text("\t-\t-\n")
		w.buf.Write(b)
	}
	w.rows = rows
	return w.object("", fmt.Sprintf("cdn/EMLARXS9EXAMPLE.%s.%s.gz", at.Format("2006-01-02-15"), w.appendHex(nil, 8)))
}

const base64Letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// cloudFrontFields are the columns of a standard log. Source: formats F-11.
const cloudFrontFields = "date time x-edge-location sc-bytes c-ip cs-method cs(Host) cs-uri-stem sc-status cs(Referer) cs(User-Agent) " +
	"cs-uri-query cs(Cookie) x-edge-result-type x-edge-request-id x-host-header cs-protocol cs-bytes time-taken x-forwarded-for " +
	"ssl-protocol ssl-cipher x-edge-response-result-type cs-protocol-version fle-status fle-encrypted-fields c-port " +
	"time-to-first-byte x-edge-detailed-result-type sc-content-type sc-content-len sc-range-start sc-range-end"

// BulkUmbrellaDNS is object i of DNS logs, about 210 bytes a row. Source: formats F-18.
func BulkUmbrellaDNS(seed uint64, i, rows int) Object {
	w := newWriter(seed, saltBulkUmbrella, uint64(i))
	at := systemStart.Add(time.Duration(i) * 10 * time.Minute)
	var b row
	for range rows {
		host := w.below(bulkPool)
		b = at.Add(time.Duration(w.below(600))*time.Second).AppendFormat(b[:0], `"2006-01-02 15:04:05","host-`)
		b = b.num(host).text(`","host-`).num(host).text(`,Site A,Net A","`).private(host).text(`","`).addr(host).text(w.pick(`","Allowed`, `","Allowed`, `","Blocked`))
		b = b.text(w.pick(`","1 (A)`, `","1 (A)`, `","28 (AAAA)`)).text(w.pick(`","NOERROR","`, `","NOERROR","`, `","NXDOMAIN","`))
		b = hex.AppendEncode(b, []byte{byte(w.below(256)), byte(w.below(16))})
		b = b.text(".cdn.example.").text(w.pick("com", "net", "org")).text(`.","Chat,Photo Sharing","Roaming Computers","Roaming Computers,Sites,Networks",""` + "\n")
		w.buf.Write(b)
	}
	w.rows = rows
	return w.object("", fmt.Sprintf("1234567_0a1b2c/dnslogs/%s/%s-%s.csv.gz", at.Format("2006-01-02"), at.Format("2006-01-02-15-04"), w.appendHex(nil, 4)))
}

// BulkVoiso is n events of a telephone system, each as a message holds it. Source:
// formats F-1.
func BulkVoiso(seed uint64, n int) []string { return voiso(seed, n).Bodies }

// BulkEventBridge is n events of EventBridge, a quarter of them findings. Source:
// formats F-7.
func BulkEventBridge(seed uint64, n int) []string { return eventBridge(seed, n).Bodies }

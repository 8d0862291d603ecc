package feed

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/penstock/penstock/services/demo/cloud"
)

// System is what one vendor's system leaves behind: objects in a bucket that are
// announced in a queue, or events in the messages of a queue.
type System struct {
	// Name of the system, in small letters with hyphens.
	Name string
	// Queue has a message for each object, or Bodies. Empty: nothing is announced,
	// the bucket has to be listed.
	Queue string
	// Bucket holds Objects; "" where there are none.
	Bucket  string
	Objects []Object
	// Bodies of messages.
	Bodies []string
	// Events are the different events in all of it.
	Events int
}

// Systems makes the samples of each system but CloudTrail, scale events or a few
// more of each. The same seed gives the same. Source: formats F-1 to F-21.
func Systems(seed uint64, scale int) []System {
	all := []System{
		vpcFlow(seed, scale), cloudFront(seed, scale), guardDutyExport(seed, scale), umbrella(seed, scale), opswat(seed, scale),
		metaDefender(seed, scale), voiso(seed, scale), censornet(seed, scale), eventBridge(seed, scale), securityHub(seed, scale), application(seed, scale),
	}
	for i := range all {
		if all[i].Events == 0 {
			for _, o := range all[i].Objects {
				all[i].Events += o.Records
			}
		}
	}
	return all
}

// Install puts a system into the world: its queue and bucket, then what is in them.
func (s *System) Install(ctx context.Context, c *cloud.Cloud) error {
	if err := s.Prepare(c); err != nil {
		return err
	}
	for _, o := range s.Objects {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err := c.Put(o.Bucket, o.Key, cloud.Object{Body: o.Body}); err != nil {
			return errInstall.New(err, "put %s of %s", o.Key, s.Name)
		}
	}
	for _, body := range s.Bodies {
		if _, err := c.Send(s.Queue, body); err != nil {
			return errInstall.New(err, "send a message of %s", s.Name)
		}
	}
	return nil
}

// Prepare makes the empty bucket and queue, so that they can be read.
func (s *System) Prepare(c *cloud.Cloud) error {
	if s.Queue != "" {
		if _, err := c.CreateQueue(s.Queue, nil); err != nil {
			return errInstall.New(err, "create the queue of %s", s.Name)
		}
	}
	if s.Bucket == "" {
		return nil
	}
	if err := c.CreateBucket(s.Bucket, cloud.BucketOptions{}); err != nil {
		return errInstall.New(err, "create the bucket of %s", s.Name)
	}
	if s.Queue != "" {
		if err := c.Notify(s.Bucket, cloud.Notification{Queue: s.Queue}); err != nil {
			return errInstall.New(err, "announce the objects of %s", s.Name)
		}
	}
	return nil
}

// systemStart is when the samples happened.
var systemStart = time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)

// writer makes one object, line by line.
type writer struct {
	random
	buf  bytes.Buffer
	rows int
}

func newWriter(seed, salt, object uint64) *writer {
	return &writer{random: newRand(seed, salt, object, 0)}
}

// row adds a line that is a record.
func (w *writer) row(format string, args ...any) {
	fmt.Fprintf(&w.buf, format+"\n", args...)
	w.rows++
}

// object ends the object.
func (w *writer) object(bucket, key string) Object {
	body := w.buf.Bytes()
	if strings.HasSuffix(key, ".gz") {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		_, _ = z.Write(body) // a buffer takes everything
		_ = z.Close()
		body = packed.Bytes()
	}
	return Object{Bucket: bucket, Key: key, Body: body, Records: w.rows}
}

// pick returns one of list.
func (r *random) pick(list ...string) string { return list[r.below(len(list))] }

// inside and outside are addresses of the ranges for documentation.
func (r *random) inside() string { return fmt.Sprintf("192.0.2.%d", 1+r.below(254)) }

func (r *random) outside() string {
	return fmt.Sprintf("%s.%d", r.pick("198.51.100", "203.0.113"), 1+r.below(254))
}

func (r *random) host() string {
	return fmt.Sprintf("%s%d.example.%s", r.pick("www", "api", "cdn", "mail"), r.below(40), r.pick("com", "net", "org"))
}

// objects calls make for each of a few objects, n rows in all.
func objects(seed, salt uint64, n, perObject int, make func(w *writer, object, rows int) Object) []Object {
	var all []Object
	for i := 0; i*perObject < n; i++ {
		all = append(all, make(newWriter(seed, salt, uint64(i)), i, min(perObject, n-i*perObject)))
	}
	return all
}

func vpcFlow(seed uint64, n int) System {
	s := System{Name: "vpc-flow", Bucket: "penstock-demo-flow", Queue: "penstock-demo-flow"}
	s.Objects = objects(seed, saltVPC, n, 400, func(w *writer, i, rows int) Object {
		at := systemStart.Add(time.Duration(i) * 5 * time.Minute)
		v5 := i%3 == 2 // a flow log of the owner's own order
		if v5 {
			_, _ = w.buf.WriteString("version flow-direction srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status account-id interface-id\n")
		} else {
			_, _ = w.buf.WriteString("version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status\n")
		}
		for range rows {
			start := at.Unix() + int64(w.below(240))
			eni := "eni-" + string(w.appendHex(nil, 17))
			switch {
			case w.below(40) == 0 && !v5:
				w.row("2 %s %s - - - - - - - %d %d - NODATA", cloud.AccountID, eni, start, start+59)
			case v5:
				w.row("5 %s %s %s %d %d 6 %d %d %d %d %s OK %s %s", w.pick("ingress", "egress"), w.inside(), w.outside(), 1024+w.below(60000),
					443, 1+w.below(90), 40+w.below(90000), start, start+59, w.pick("ACCEPT", "ACCEPT", "REJECT"), cloud.AccountID, eni)
			default:
				w.row("2 %s %s %s %s %d %s 6 %d %d %d %d %s OK", cloud.AccountID, eni, w.inside(), w.outside(), 1024+w.below(60000),
					w.pick("443", "22", "53"), 1+w.below(90), 40+w.below(90000), start, start+59, w.pick("ACCEPT", "ACCEPT", "REJECT"))
			}
		}
		return w.object(s.Bucket, fmt.Sprintf("AWSLogs/%s/vpcflowlogs/eu-west-1/%s/%s_vpcflowlogs_eu-west-1_fl-0a1b2c3d_%s_%s.log.gz",
			cloud.AccountID, at.Format("2006/01/02"), cloud.AccountID, at.Format("20060102T1504Z"), w.appendHex(nil, 8)))
	})
	return s
}

func cloudFront(seed uint64, n int) System {
	s := System{Name: "cloudfront", Bucket: "penstock-demo-cdn", Queue: "penstock-demo-cdn"}
	const fields = "date time x-edge-location sc-bytes c-ip cs-method cs(Host) cs-uri-stem sc-status cs(Referer) cs(User-Agent) cs-uri-query cs(Cookie) x-edge-result-type x-edge-request-id x-host-header cs-protocol cs-bytes time-taken x-forwarded-for ssl-protocol ssl-cipher x-edge-response-result-type cs-protocol-version fle-status fle-encrypted-fields c-port time-to-first-byte x-edge-detailed-result-type sc-content-type sc-content-len sc-range-start sc-range-end"
	s.Objects = objects(seed, saltCloudFront, n, 300, func(w *writer, i, rows int) Object {
		at := systemStart.Add(time.Duration(i) * time.Hour)
		_, _ = w.buf.WriteString("#Version: 1.0\n#Fields: " + fields + "\n")
		for range rows {
			t := at.Add(time.Duration(w.below(3600)) * time.Second)
			result := w.pick("Hit", "Hit", "Miss", "Error")
			w.row("%s\t%s\t%s\t%d\t%s\t%s\td111111abcdef8.cloudfront.net\t/%s.html\t%s\t-\tMozilla/5.0%%20(X11)\t-\t-\t%s\t%s==\td111111abcdef8.cloudfront.net\thttps\t%d\t0.%03d\t-\tTLSv1.3\tTLS_AES_128_GCM_SHA256\t%s\tHTTP/2.0\t-\t-\t%d\t0.%03d\t%s\ttext/html\t%d\t-\t-",
				t.Format("2006-01-02"), t.Format("15:04:05"), w.pick("LHR5", "FRA2", "IAD7"), 200+w.below(90000), w.outside(), w.pick("GET", "GET", "POST"),
				w.pick("index", "about", "login"), w.pick("200", "304", "404", "000"), result, w.letters(54), 20+w.below(400), w.below(1000), result,
				1024+w.below(60000), w.below(1000), result, 78+w.below(9000))
		}
		return w.object(s.Bucket, fmt.Sprintf("cdn/EMLARXS9EXAMPLE.%s.%s.gz", at.Format("2006-01-02-15"), w.appendHex(nil, 8)))
	})
	return s
}

// finding is a GuardDuty finding. Source: formats F-13.
func (r *random) finding(at time.Time) string {
	kind := r.pick("Recon:EC2/PortProbeUnprotectedPort", "UnauthorizedAccess:IAMUser/MaliciousIPCaller", "CryptoCurrency:EC2/BitcoinTool.B!DNS")
	id := string(r.appendHex(nil, 32))
	return fmt.Sprintf(`{"schemaVersion":"2.0","accountId":%q,"region":"eu-west-1","partition":"aws","id":%q,"arn":"arn:aws:guardduty:eu-west-1:%s:detector/d1/finding/%s","type":%q,"resource":{"resourceType":"Instance"},"service":{"serviceName":"guardduty","detectorId":"d1","action":{"actionType":"PORT_PROBE"},"eventFirstSeen":%q,"eventLastSeen":%q,"archived":false,"count":%d},"severity":%d,"createdAt":%q,"updatedAt":%q,"title":"A sample finding","description":"%s was probed from %s"}`,
		cloud.AccountID, id, cloud.AccountID, id, kind, at.Format(time.RFC3339), at.Add(time.Minute).Format(time.RFC3339), 1+r.below(20), 1+r.below(9),
		at.Format("2006-01-02T15:04:05.000Z"), at.Add(5*time.Minute).Format("2006-01-02T15:04:05.000Z"), r.inside(), r.outside())
}

func guardDutyExport(seed uint64, n int) System {
	s := System{Name: "guardduty-export", Bucket: "penstock-demo-guardduty", Queue: "penstock-demo-guardduty"}
	s.Objects = objects(seed, saltGuardDuty, max(1, n/10), 20, func(w *writer, i, rows int) Object {
		at := systemStart.Add(time.Duration(i) * 15 * time.Minute)
		for range rows {
			w.row("%s", w.finding(at))
		}
		id := w.guid()
		return w.object(s.Bucket, fmt.Sprintf("AWSLogs/%s/GuardDuty/eu-west-1/%s/%s.jsonl.gz", cloud.AccountID, at.Format("2006/01/02"), id.String()))
	})
	return s
}

func umbrella(seed uint64, n int) System {
	s := System{Name: "umbrella", Bucket: "penstock-demo-umbrella"} // managed by the vendor: no notifications
	folders := []string{"dnslogs", "proxylogs", "iplogs", "dnslogs"}
	s.Objects = objects(seed, saltUmbrella, n, 200, func(w *writer, i, rows int) Object {
		at := systemStart.Add(time.Duration(i) * 10 * time.Minute)
		folder := folders[i%len(folders)]
		for range rows {
			t := at.Add(time.Duration(w.below(600)) * time.Second).Format(time.DateTime)
			host := fmt.Sprintf("host-%d", w.below(60))
			switch folder {
			case "dnslogs":
				w.row(`"%s","%s","%s,Site A,Net A","%s","%s","%s","1 (A)","NOERROR","%s.","Chat,Photo Sharing","Roaming Computers","Roaming Computers,Sites,Networks",""`,
					t, host, host, w.inside(), w.outside(), w.pick("Allowed", "Allowed", "Blocked"), w.host())
			case "iplogs":
				w.row(`"%s","%s","%s","%d","%s","445","Test Category"`, t, host, w.inside(), 1024+w.below(60000), w.outside())
			default:
				w.row(`"%s","%s","%s","%s","%s","text/html","%s","https://%s/a?b=1,2","","curl/8","200","562","1489","","","Search Engines","","","","","","Roaming Computers","","%s,Site A","Roaming Computers,Sites","GET","","","a","13671956","","","","",""`,
					t, host, w.inside(), w.outside(), w.outside(), w.pick("ALLOWED", "BLOCKED"), w.host(), host)
			}
		}
		return w.object(s.Bucket, fmt.Sprintf("1234567_0a1b2c/%s/%s/%s-%s.csv.gz", folder, at.Format("2006-01-02"), at.Format("2006-01-02-15-04"), w.appendHex(nil, 4)))
	})
	return s
}

// device is a record of a device. Source: formats F-2.
func (r *random) device(at time.Time) (logType, name, id, details, stamp string) {
	logType = r.pick("compliant", "noncompliant", "added", "exempt_all", "unseen", "critical_found")
	name = fmt.Sprintf("host-%d", r.below(90))
	stamp = at.Add(time.Duration(r.below(300_000)) * time.Millisecond).Format("2006-01-02T15:04:05.000Z")
	return logType, name, "d-" + string(r.appendHex(nil, 8)), fmt.Sprintf("Device %s is %s (client version 7.6.%d)", name, logType, r.below(900)), stamp
}

func opswat(seed uint64, n int) System {
	s := System{Name: "opswat", Bucket: "penstock-demo-opswat", Queue: "penstock-demo-opswat"}
	s.Objects = objects(seed, saltOPSWAT, n/2, 100, func(w *writer, i, rows int) Object {
		at := systemStart.Add(time.Duration(i) * 5 * time.Minute)
		for range rows { // values over several lines, one after the other
			kind, name, id, details, stamp := w.device(at)
			w.row("{\n\"log_type\": %q,\n\"device_name\": %q,\n\"device_id\": %q,\n\"last_seen\": %q,\n\"device_group\": \"Default\",\n\"details\": %q,\n\"type\": \"Device\",\n\"device_username\": \"user-%d\",\n\"timestamp\": %q\n}",
				kind, name, id, stamp, details, w.below(50), stamp)
		}
		return w.object(s.Bucket, fmt.Sprintf("central/%s-%d.json", at.Format("2006/01/02/1504"), i))
	})
	return s
}

func metaDefender(seed uint64, n int) System {
	s := System{Name: "metadefender", Bucket: "penstock-demo-access", Queue: "penstock-demo-access"}
	s.Objects = objects(seed, saltMetaDefender, n/2, 100, func(w *writer, i, rows int) Object {
		at := systemStart.Add(time.Duration(i) * 5 * time.Minute)
		for range rows {
			if w.below(4) == 0 {
				w.row(`"log_type":"config","details":"Administrator Admin One (admin1@example.org) changed Settings - Integrations ","admin_name":"Admin One","type":"Account","event":"Configuration Change","admin_email":"admin1@example.org","timestamp":"%s"`,
					at.Add(time.Duration(w.below(300_000))*time.Millisecond).Format("2006-01-02T15:04:05.000Z"))
				continue
			}
			kind, name, id, details, stamp := w.device(at)
			w.row(`"log_type":"%s","details":"%s","device_id":"%s","device_name":"%s","type":"Device","device_group":"Default","last_seen":"%s","timestamp":"%s","device_username":"user-%d"`,
				kind, details, id, name, stamp, stamp, w.below(50))
		}
		return w.object(s.Bucket, fmt.Sprintf("access/%s-%d.log", at.Format("2006/01/02/1504"), i))
	})
	return s
}

func voiso(seed uint64, n int) System {
	s := System{Name: "voiso", Queue: "penstock-demo-voiso", Events: n}
	for i := range n {
		r := newRand(seed, saltVoiso, uint64(i), 0)
		stamp := systemStart.Add(time.Duration(i) * 137 * time.Millisecond).Format("2006-01-02T15:04:05.00Z")
		who, user, group := fmt.Sprintf("op%d@example.org", r.below(9)), fmt.Sprintf("user%d@example.org", r.below(90)), r.pick("admin", "supervisor", "agent")
		kind, event, params := "app_login", "successful_login", fmt.Sprintf(`"user":%q,"access_group":%q`, user, group)
		switch r.below(6) {
		case 0:
			event, params = "incorrect_password", params+fmt.Sprintf(`,"count":"%d"`, 4+r.below(9))
		case 1:
			event, params = "unauthorized_ip", params+fmt.Sprintf(`,"ip":%q`, r.outside())
		case 2:
			kind, event, params = "user", "user_added", fmt.Sprintf(`"who":%q,`, who)+params
		case 3:
			kind, event, params = "allowed_ip", "ip_added", fmt.Sprintf(`"who":%q,"access_group":%q,"ip":"192.0.2.0/28"`, who, group)
		}
		s.Bodies = append(s.Bodies, fmt.Sprintf(`{"timestamp":%q,"type":%q,"event":%q,"callcenter":"tenant-%d","params":{%s}}`, stamp, kind, event, r.below(3), params))
	}
	return s
}

func censornet(seed uint64, n int) System {
	s := System{Name: "censornet", Queue: "penstock-demo-censornet", Events: n}
	for i := range n {
		r := newRand(seed, saltCensornet, uint64(i), 0)
		stamp := systemStart.Add(time.Duration(i) * 211 * time.Millisecond).Format("2006-01-02 15:04:05.000000")
		s.Bodies = append(s.Bodies, fmt.Sprintf(`{"utc_timestamp":%q,"tz_offset":0,"netbios_domain":"HQ","samaccountname":"user-%d","tag":"gw-1","ip_address":%q,"dst_ip_address":%q,"http_method":"GET","url_scheme":"https","url_domain":%q,"url_path":"/a","url_query":"","final_action":%q,"log_level":"Normal","web_categories":["News"],"icap_tx_uuid":"\\x%s"}`,
			stamp, r.below(50), r.inside(), r.outside(), r.host(), r.pick("Allow", "Block"), r.appendHex(nil, 32)))
	}
	return s
}

// envelope is an event of EventBridge. Source: formats F-7.
func (r *random) envelope(at time.Time, source, kind, detail string) string {
	id := r.guid()
	return fmt.Sprintf(`{"version":"0","id":%q,"detail-type":%q,"source":%q,"account":%q,"time":%q,"region":"eu-west-1","resources":[],"detail":%s}`,
		id.String(), kind, source, cloud.AccountID, at.Format(time.RFC3339), detail)
}

func eventBridge(seed uint64, n int) System {
	s := System{Name: "eventbridge", Queue: "penstock-demo-events", Events: n}
	for i := range n {
		r := newRand(seed, saltEventBridge, uint64(i), 0)
		at := systemStart.Add(time.Duration(i) * time.Second)
		instance := "i-" + string(r.appendHex(nil, 17))
		switch r.below(4) {
		case 0:
			s.Bodies = append(s.Bodies, r.envelope(at, "aws.guardduty", "GuardDuty Finding", r.finding(at)))
		case 1:
			s.Bodies = append(s.Bodies, r.envelope(at, "aws.backup", "Backup Job State Change", `{"state":"COMPLETED","backupVaultName":"vault-a"}`))
		default:
			s.Bodies = append(s.Bodies, r.envelope(at, "aws.ec2", "EC2 Instance State-change Notification",
				fmt.Sprintf(`{"instance-id":%q,"state":%q}`, instance, r.pick("running", "stopped", "terminated"))))
		}
	}
	return s
}

func securityHub(seed uint64, n int) System {
	s := System{Name: "securityhub", Queue: "penstock-demo-securityhub"}
	for i := 0; s.Events < n; i++ {
		r := newRand(seed, saltSecurityHub, uint64(i), 0)
		at := systemStart.Add(time.Duration(i) * time.Second)
		findings := make([]string, 1+r.below(4))
		for k := range findings {
			findings[k] = fmt.Sprintf(`{"SchemaVersion":"2018-10-08","Id":"arn:aws:securityhub:eu-west-1:%s:finding/%s","ProductArn":"arn:aws:securityhub:eu-west-1::product/aws/securityhub","GeneratorId":"security-control/Config.1","AwsAccountId":%q,"Region":"eu-west-1","Types":["Software and Configuration Checks"],"CreatedAt":%q,"UpdatedAt":%q,"Severity":{"Label":%q},"Title":"A sample finding","Description":"d","Resources":[{"Type":"AwsAccount","Id":"AWS::::Account:%s"}]}`,
				cloud.AccountID, r.appendHex(nil, 32), cloud.AccountID, at.Format("2006-01-02T15:04:05.000Z"), at.Format("2006-01-02T15:04:05.000Z"), r.pick("LOW", "MEDIUM", "HIGH"), cloud.AccountID)
		}
		s.Events += len(findings)
		s.Bodies = append(s.Bodies, r.envelope(at, "aws.securityhub", "Security Hub Findings - Imported", `{"findings":[`+strings.Join(findings, ",")+`]}`))
	}
	return s
}

func application(seed uint64, n int) System {
	s := System{Name: "application", Bucket: "penstock-demo-app", Queue: "penstock-demo-app"}
	s.Objects = objects(seed, saltApplication, n, 250, func(w *writer, i, rows int) Object {
		at := systemStart.Add(time.Duration(i) * time.Minute)
		for k := range rows {
			w.row(`{"id":"%d-%d","ts":%q,"kind":%q,"user":"user-%d","ip":%q}`, i, k, at.Add(time.Duration(k)*time.Millisecond).Format(time.RFC3339Nano),
				w.pick("login", "logout", "export"), w.below(50), w.outside())
		}
		return w.object(s.Bucket, fmt.Sprintf("app/%s-%d.ndjson.gz", at.Format("2006/01/02/1504"), i))
	})
	return s
}

// FillTrail puts CloudTrail events since a time into the event history of c, and
// returns how many. They are of the last minutes: the history ends after 90 days.
func FillTrail(c *cloud.Cloud, seed uint64, n int, since time.Time) int {
	set := CloudTrail(Options{Seed: seed + 100, Objects: 1, RecordsPerObject: Fixed(n), Start: since, Regions: []string{c.Region()}})
	events := make([]cloud.TrailEvent, 0, n)
	for k := range n {
		var rec struct {
			EventID, EventName, EventSource string
			EventTime                       time.Time
			ReadOnly                        bool
		}
		raw := set.Record(nil, 0, k)
		if err := json.Unmarshal(raw, &rec); err != nil {
			panic(err) // it was made here
		}
		// The set's own times are those before its object was written.
		at := since.Add(time.Duration(k) * time.Second).UTC().Truncate(time.Second)
		text := strings.Replace(string(raw), rec.EventTime.Format(time.RFC3339), at.Format(time.RFC3339), 1)
		events = append(events, cloud.TrailEvent{ID: rec.EventID, Name: rec.EventName, Source: rec.EventSource, Time: at, ReadOnly: rec.ReadOnly, Record: text})
	}
	c.CloudTrail().Add(c.Region(), events...)
	return n
}

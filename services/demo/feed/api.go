package feed

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
)

// salts of what the polled APIs hold.
const (
	saltLogs uint64 = iota + 101
	saltMetrics
	saltFindings
)

// Watched is what the polled APIs of a [cloud.Cloud] hold after [FillAPIs]: what
// has to be asked for, and how many events must come of it.
type Watched struct {
	// LogGroups and Namespaces are the names to poll, Detector that of GuardDuty.
	LogGroups, Namespaces []string
	Detector              string
	// LogEvents were put, late ones included.
	LogEvents int
	// Series and Points are metrics, and their values, one a minute and series.
	Series, Points int
	// Findings counts the different findings, each in the form that it had last.
	Findings int

	findings map[string]bool
}

// logGroups of the demo, with what writes into them.
var logGroups = []struct {
	name, stream string
	line         func(r *random, at time.Time) []string
}{
	{"/aws/lambda/orders", "2026/01/05/[$LATEST]", lambdaLines},
	{"/aws/lambda/invoices", "2026/01/05/[$LATEST]", lambdaLines},
	{"/ecs/storefront", "web/", jsonLines},
	{"/var/log/bastion", "bastion-", sshLines},
}

// metricKinds of the demo: names with the unit that a value is about.
var metricKinds = []struct {
	namespace, name, dimension string
	values                     []string
	most                       int
}{
	{"AWS/EC2", "CPUUtilization", "InstanceId", []string{"i-0a1b2c3d4e5f60001", "i-0a1b2c3d4e5f60002", "i-0a1b2c3d4e5f60003"}, 100},
	{"AWS/EC2", "NetworkIn", "InstanceId", []string{"i-0a1b2c3d4e5f60001", "i-0a1b2c3d4e5f60002", "i-0a1b2c3d4e5f60003"}, 5_000_000},
	{"AWS/Lambda", "Invocations", "FunctionName", []string{"orders", "invoices"}, 400},
	{"AWS/Lambda", "Errors", "FunctionName", []string{"orders", "invoices"}, 4},
	{"AWS/SQS", "ApproximateAgeOfOldestMessage", "QueueName", []string{"orders", "orders-dead"}, 900},
	{"Storefront", "OrdersPlaced", "Shop", []string{"eu", "us"}, 60},
}

// findingKinds of the demo.
var findingKinds = []struct {
	kind, title, action, resource string
	severity                      float64
}{
	{"Recon:EC2/PortProbeUnprotectedPort", "Unprotected port on EC2 instance is being probed", "PORT_PROBE", "Instance", 2},
	{"UnauthorizedAccess:EC2/SSHBruteForce", "SSH brute force attacks against an EC2 instance", "NETWORK_CONNECTION", "Instance", 5},
	{"UnauthorizedAccess:IAMUser/ConsoleLoginSuccess.B", "Multiple worldwide console logins by one user", "AWS_API_CALL", "AccessKey", 5},
	{"CryptoCurrency:EC2/BitcoinTool.B!DNS", "EC2 instance queries a domain name of a mining pool", "DNS_REQUEST", "Instance", 8},
	{"Policy:S3/BucketBlockPublicAccessDisabled", "Public access was opened for an S3 bucket", "AWS_API_CALL", "S3Bucket", 2},
}

const detectorID = "6ab6e6ee780ed494f3b7ca56acdc74df"

// FillAPIs puts what happens from one time to another, in whole minutes, into the
// APIs of c that are polled: log groups, metrics and findings of the region of c.
// The same seed gives the same, whatever the intervals; call it again for the next
// one. One log event of ten arrives a minute late. Findings of before are updated.
func FillAPIs(c *cloud.Cloud, seed uint64, from, to time.Time) (Watched, error) {
	w := Watched{Detector: detectorID, findings: map[string]bool{}}
	for _, k := range metricKinds {
		if !slices.Contains(w.Namespaces, k.namespace) {
			w.Namespaces = append(w.Namespaces, k.namespace)
		}
		w.Series += len(k.values)
	}
	c.CreateDetector("", detectorID)
	for _, g := range logGroups {
		w.LogGroups = append(w.LogGroups, g.name)
		if err := c.CreateLogStream("", g.name, "not-used-yet"); err != nil {
			return w, err
		}
	}
	for at := from.UTC().Truncate(time.Minute); at.Before(to); at = at.Add(time.Minute) {
		if err := w.minute(c, seed, at); err != nil {
			return w, err
		}
	}
	return w, nil
}

func (w *Watched) minute(c *cloud.Cloud, seed uint64, at time.Time) error {
	minute := uint64(at.Unix() / 60)
	for i, g := range logGroups {
		r := newRand(seed, saltLogs, uint64(i), minute)
		stream := g.stream + strconv.Itoa(r.below(3))
		var events []cloud.LogEvent
		for range 2 + r.below(4) {
			when := at.Add(time.Duration(r.below(55_000)) * time.Millisecond)
			ingested := when.Add(time.Duration(100+r.below(900)) * time.Millisecond)
			if r.below(10) == 0 {
				ingested = ingested.Add(time.Minute)
			}
			for _, text := range g.line(&r, when) {
				events = append(events, cloud.LogEvent{Time: when, Ingested: ingested, Message: text, ID: logEventID(&r, when)})
			}
		}
		w.LogEvents += len(events)
		if err := c.PutLogEvents("", g.name, stream, events...); err != nil {
			return err
		}
	}
	for i, k := range metricKinds {
		for j, value := range k.values {
			r := newRand(seed, saltMetrics, uint64(i)<<8|uint64(j), minute)
			m := cloud.Metric{Namespace: k.namespace, Name: k.name, Dimensions: map[string]string{k.dimension: value}}
			d := cloud.Datum{Time: at, Value: float64(r.below(k.most*100)) / 100, Published: at.Add(time.Minute)}
			if err := c.PutMetricData("", m, d); err != nil {
				return err
			}
			w.Points++
		}
	}
	// One finding of each kind and hour, that occurs again every quarter of an hour.
	for i := range findingKinds {
		if (at.Minute()+3*i)%15 != 0 {
			continue
		}
		id, doc := findingDoc(seed, i, at)
		if err := c.PutFinding("", detectorID, doc); err != nil {
			return err
		}
		w.findings[id] = true
		w.Findings = len(w.findings)
	}
	return nil
}

// logEventID makes an id as long as the real ones, and like them in the order of
// time: 56 digits.
func logEventID(r *random, at time.Time) string {
	return fmt.Sprintf("%017d%020d%019d", at.UnixMilli(), r.next(), r.next()>>1)
}

func lambdaLines(r *random, _ time.Time) []string {
	id := r.guid().String()
	ms := 3 + r.below(900)
	lines := []string{"START RequestId: " + id + " Version: $LATEST\n"}
	if r.below(12) == 0 {
		lines = append(lines, "ERROR "+id+" order refused\nTraceback (most recent call last):\n  File \"/var/task/app.py\", line 41, in handler\n    raise Refused(order)\n")
	}
	return append(lines, "END RequestId: "+id+"\n", fmt.Sprintf(
		"REPORT RequestId: %s\tDuration: %d.%02d ms\tBilled Duration: %d ms\tMemory Size: 128 MB\tMax Memory Used: %d MB\t\n", id, ms, r.below(100), ms+1, 40+r.below(60)))
}

func jsonLines(r *random, at time.Time) []string {
	paths := []string{"/", "/cart", "/product/" + strconv.Itoa(r.below(5000)), "/checkout", "/suche?q=möbel"}
	status := []int{200, 200, 200, 304, 404, 500}[r.below(6)]
	return []string{fmt.Sprintf(`{"time":%q,"level":"info","msg":"request","method":"GET","path":%q,"status":%d,"ms":%d,"client":"198.51.100.%d"}`,
		at.Format(time.RFC3339Nano), paths[r.below(len(paths))], status, r.below(400), r.below(256))}
}

func sshLines(r *random, at time.Time) []string {
	who := []string{"root", "admin", "deploy", "oracle"}[r.below(4)]
	verb := "Failed password for"
	if who == "deploy" {
		verb = "Accepted publickey for"
	}
	return []string{fmt.Sprintf("%s bastion sshd[%d]: %s %s from 203.0.113.%d port %d ssh2", at.Format(time.Stamp), 1000+r.below(30000), verb, who, r.below(256), 1024+r.below(60000))}
}

// findingDoc makes the finding of kind i and the hour, as it is at that time: the
// count of occurrences grows. The kinds are three minutes apart. Source: formats F-13.
func findingDoc(seed uint64, i int, at time.Time) (id string, doc []byte) {
	k := findingKinds[i]
	shifted := at.Add(time.Duration(3*i) * time.Minute)
	hour, count := shifted.Truncate(time.Hour), shifted.Minute()/15+1
	r := newRand(seed, saltFindings, uint64(i), uint64(hour.Unix()))
	id = string(r.appendHex(nil, 32))
	instance := "i-0a1b2c3d4e5f6000" + strconv.Itoa(1+r.below(3))
	resource := fmt.Sprintf(`{"resourceType":"Instance","instanceDetails":{"instanceId":%q,"instanceType":"t3.micro","imageId":"ami-0a1b2c3d4e5f60000","tags":[{"key":"team","value":"shop"}],"networkInterfaces":[{"privateIpAddress":"10.0.0.%d","publicIp":"192.0.2.%d","vpcId":"vpc-0a1b2c3d","ipv6Addresses":[]}]}}`, instance, r.below(256), r.below(256))
	switch k.resource {
	case "AccessKey":
		resource = `{"resourceType":"AccessKey","accessKeyDetails":{"accessKeyId":"ASIAEXAMPLE","principalId":"AIDAEXAMPLE","userName":"user-a","userType":"IAMUser"}}`
	case "S3Bucket":
		resource = `{"resourceType":"S3Bucket","s3BucketDetails":[{"name":"example-bucket","arn":"arn:aws:s3:::example-bucket","type":"Destination","publicAccess":{"effectivePermission":"PUBLIC"}}]}`
	}
	stamp := func(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
	return id, fmt.Appendf(nil, `{"schemaVersion":"2.0","accountId":%q,"region":"us-east-1","partition":"aws","id":%q,"arn":"arn:aws:guardduty:us-east-1:%s:detector/%s/finding/%s","type":%q,"resource":%s,"service":{"serviceName":"guardduty","detectorId":%q,"action":{"actionType":%q},"resourceRole":"TARGET","additionalInfo":{"value":"{}","type":"default"},"eventFirstSeen":%q,"eventLastSeen":%q,"archived":false,"count":%d},"severity":%g,"createdAt":%q,"updatedAt":%q,"title":%q,"description":%q}`,
		cloud.AccountID, id, cloud.AccountID, detectorID, id, k.kind, resource, detectorID, k.action,
		stamp(hour), stamp(at), count, k.severity, stamp(hour), stamp(at), k.title, k.title+".")
}

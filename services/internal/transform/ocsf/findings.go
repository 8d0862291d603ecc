package ocsf

import (
	"slices"
	"strconv"

	"github.com/penstock/penstock/services/internal/document"
)

func init() {
	define(mapping{
		formats: []string{"guardduty"}, product: "GuardDuty", profiles: []string{"cloud"},
		under: []string{"", "detail"}, capital: true,
		fields: []field{
			{to: "cloud.account.uid", from: "accountId"},
			{to: "cloud.region", from: "region"},
			{to: "count", from: "service.count", as: integer},
			{to: "finding_info.uid", from: "arn"},
			{to: "finding_info.uid_alt", from: "id"},
			{to: "finding_info.created_time", from: "createdAt", as: instant},
			{to: "finding_info.modified_time", from: "updatedAt", as: instant},
			{to: "finding_info.first_seen_time", from: "service.eventFirstSeen", as: instant},
			{to: "finding_info.last_seen_time", from: "service.eventLastSeen", as: instant},
			{to: "finding_info.title", from: "title"},
			{to: "finding_info.desc", from: "description"},
			{to: "finding_info.types", from: "type", as: texts},
			{to: "metadata.log_version", from: "schemaVersion"},
			{to: "metadata.product.feature.uid", from: "service.detectorId"},
			{from: "severity", as: looking},
			{from: "createdAt", as: looking},
			{from: "updatedAt", as: looking},
			{from: "service.archived", as: looking},
			{from: "partition", as: looking},
			{from: "resource.resourceType", as: looking},
			{from: "resource.accessKeyDetails.accessKeyId", as: looking},
			{from: "resource.instanceDetails.instanceId", as: looking},
			{from: "resource.eksClusterDetails.arn", as: looking},
			{from: "resource.ecsClusterDetails.arn", as: looking},
			{from: "resource.lambdaDetails.functionArn", as: looking},
			{from: "resource.rdsDbInstanceDetails.dbInstanceArn", as: looking},
			{from: "resource.s3BucketDetails[0].arn", as: looking},
			{from: "service.action.awsApiCallAction.api", as: looking},
			{from: "service.action.awsApiCallAction.serviceName", as: looking},
			{from: "service.action.awsApiCallAction.remoteIpDetails.ipAddressV4", as: looking},
			{from: "service.action.dnsRequestAction.domain", as: looking},
			{from: "service.action.networkConnectionAction.connectionDirection", as: looking},
			{from: "service.action.networkConnectionAction.remoteIpDetails.ipAddressV4", as: looking},
		},
		sets:   []string{"evidences", "is_alert", "resources"},
		finish: finishGuardDuty,
	})
	define(mapping{
		formats: []string{"securityhub"}, product: "Security Hub", profiles: []string{"cloud"},
		under: []string{"", "detail.findings[0]"},
		fields: []field{
			{to: "cloud.account.uid", from: "AwsAccountId"},
			{to: "cloud.region", from: "Region"},
			{to: "confidence_score", from: "Confidence", as: integer},
			{to: "finding_info.uid", from: "Id"},
			{to: "finding_info.created_time", from: "CreatedAt", as: instant},
			{to: "finding_info.modified_time", from: "UpdatedAt", as: instant},
			{to: "finding_info.first_seen_time", from: "FirstObservedAt", as: instant},
			{to: "finding_info.last_seen_time", from: "LastObservedAt", as: instant},
			{to: "finding_info.title", from: "Title"},
			{to: "finding_info.desc", from: "Description"},
			{to: "finding_info.src_url", from: "SourceUrl"},
			{to: "finding_info.types", from: "Types", as: texts},
			{to: "metadata.log_version", from: "SchemaVersion"},
			{to: "metadata.processed_time", from: "ProcessedAt", as: instant},
			{to: "metadata.product.name", from: "ProductName"},
			{to: "metadata.product.vendor_name", from: "CompanyName"},
			{to: "metadata.product.uid", from: "ProductArn"},
			{to: "metadata.product.feature.uid", from: "GeneratorId"},
			{to: "remediation.desc", from: "Remediation.Recommendation.Text"},
			{to: "remediation.references", from: "Remediation.Recommendation.Url", as: texts},
			{to: "resources", from: "Resources", need: []string{"uid"}, each: []field{
				{to: "uid", from: "Id"}, {to: "type", from: "Type"}, {to: "region", from: "Region"}, {to: "cloud_partition", from: "Partition"}, {to: "data", from: "Details", as: anything},
			}},
			{from: "Severity.Label", as: looking},
			{from: "Workflow.Status", as: looking},
			{from: "RecordState", as: looking},
			{from: "CreatedAt", as: looking},
			{from: "UpdatedAt", as: looking},
			{from: "detail.findings", as: looking},
			{from: "class_uid", as: looking},
			{from: "metadata.version", as: looking},
		},
		sets:   []string{"is_alert"},
		finish: finishSecurityHub,
	})
}

// asFinding makes a Detection Finding. What was never changed was just created.
func (r *record) asFinding(created, updated string) {
	r.as(detectionFinding, 2)
	if created == updated || updated == "" {
		r.activity = 1
	}
	r.set("is_alert", []byte("true"))
}

// setFindingStatus sets the status of a finding.
func (r *record) setFindingStatus(id int) {
	r.setCaption("status_id", "status", id, [...]string{1: "New", 2: "In Progress", 3: "Suppressed", 4: "Resolved", 5: "Archived"}[id])
}

// finishGuardDuty makes a Detection Finding.
//
// Source: Amazon GuardDuty API Reference, Finding; User Guide, severity levels.
func finishGuardDuty(r *record) {
	r.asFinding(r.text("createdAt"), r.text("updatedAt"))
	if !r.has("finding_info.uid") {
		r.set("finding_info.uid", r.out[r.slot("finding_info.uid_alt")])
	}
	if n, err := strconv.ParseFloat(r.text("severity"), 64); err == nil {
		switch {
		case n >= 9:
			r.severity = 5
		case n >= 7:
			r.severity = 4
		case n >= 4:
			r.severity = 3
		default:
			r.severity = 2
		}
	} else {
		r.severity = 0
	}
	if r.text("service.archived") == "true" {
		r.setFindingStatus(5)
	} else {
		r.setFindingStatus(1)
	}
	for _, path := range []string{
		"resource.instanceDetails.instanceId", "resource.eksClusterDetails.arn", "resource.ecsClusterDetails.arn", "resource.lambdaDetails.functionArn",
		"resource.rdsDbInstanceDetails.dbInstanceArn", "resource.s3BucketDetails[0].arn", "resource.accessKeyDetails.accessKeyId",
	} {
		if uid := r.text(path); uid != "" {
			from := len(r.buf)
			r.buf = append(r.buf, '[', '{')
			if partition := r.text("partition"); partition != "" {
				r.buf = appendText(append(r.buf, `"cloud_partition":`...), partition)
				r.buf = append(r.buf, ',')
			}
			r.buf = appendText(append(r.buf, `"type":`...), r.text("resource.resourceType"))
			r.buf = append(appendText(append(r.buf, `,"uid":`...), uid), '}', ']')
			r.set("resources", r.buf[from:])
			break
		}
	}
	r.setEvidence()
}

// setEvidence tells what GuardDuty saw.
func (r *record) setEvidence() {
	const call, connection = "service.action.awsApiCallAction.", "service.action.networkConnectionAction."
	from := len(r.buf)
	switch {
	case r.text(call+"api") != "":
		r.buf = appendText(append(r.buf, `[{"api":{"operation":`...), r.text(call+"api"))
		if name := r.text(call + "serviceName"); name != "" {
			r.buf = append(appendText(append(r.buf, `,"service":{"name":`...), name), '}')
		}
		r.buf = append(r.buf, '}')
		if ip := r.text(call + "remoteIpDetails.ipAddressV4"); ip != "" {
			r.buf = append(appendText(append(r.buf, `,"src_endpoint":{"ip":`...), ip), '}')
		}
	case r.text(connection+"remoteIpDetails.ipAddressV4") != "":
		side := `[{"src_endpoint":{"ip":`
		if r.text(connection+"connectionDirection") == "OUTBOUND" {
			side = `[{"dst_endpoint":{"ip":`
		}
		r.buf = append(appendText(append(r.buf, side...), r.text(connection+"remoteIpDetails.ipAddressV4")), '}')
	case r.text("service.action.dnsRequestAction.domain") != "":
		r.buf = append(appendText(append(r.buf, `[{"query":{"hostname":`...), r.text("service.action.dnsRequestAction.domain")), '}')
	default:
		return
	}
	r.buf = append(r.buf, '}', ']')
	r.set("evidences", r.buf[from:])
}

// severityLabels are severity_id by the labels of Security Hub.
var severityLabels = map[string]int{"INFORMATIONAL": 1, "LOW": 2, "MEDIUM": 3, "HIGH": 4, "CRITICAL": 5}

// workflows are status_id by the workflow of Security Hub, from 1 on.
var workflows = []string{"NEW", "NOTIFIED", "SUPPRESSED", "RESOLVED"}

// finishSecurityHub makes a Detection Finding of one in the AWS format. One that is in
// OCSF already is taken out of its envelope and stays as it is.
//
// Source: AWS Security Hub User Guide, AWS Security Finding Format; OCSF findings.
func finishSecurityHub(r *record) {
	if r.get("class_uid") != nil && r.get("metadata.version") != nil {
		r.done = document.Trim(r.event.Doc)
		members(r.get("detail.findings"), func(finding []byte) { r.done = finding })
		return
	}
	if !r.has("finding_info.uid") {
		return // insight results
	}
	r.asFinding(r.text("CreatedAt"), r.text("UpdatedAt"))
	r.severity = severityLabels[r.text("Severity.Label")]
	status := 1 + max(0, slices.Index(workflows, r.text("Workflow.Status")))
	if r.text("RecordState") == "ARCHIVED" {
		status = 5
	}
	r.setFindingStatus(status)
}

package feed

import (
	"fmt"
	"math"
	"strings"
)

// The fields of templates. Those that pooled knows come from a list, the others
// are computed for each record.
const (
	fieldEventID field = iota + 1
	fieldTime
	fieldCreated
	fieldEpoch
	fieldAccount
	fieldRegion
	fieldGUID
	fieldHex8
	fieldHex17
	fieldHex64
	fieldToken16
	fieldHostID
	fieldNumber
	fieldSmall

	// What a caller always has the same in an object.
	fieldUser
	fieldUserID
	fieldUserKey
	fieldRole
	fieldRoleID
	fieldTempKey
	fieldSession
	fieldIP
	fieldAgent
	fieldBrowser
	fieldOther
	fieldService
	fieldEndpoint
	fieldCipher
	fieldTeam
	fieldCluster
	fieldBucket
	fieldTable
	fieldKMSKey
	fieldQueue
	fieldSecret
	fieldFunction
	fieldRepo
	fieldImage

	// What it may change.
	fieldFolder
	fieldTopic
	fieldStack
	fieldInstance
	fieldSubnet
	fieldGroup
	fieldText
	fieldMetric
	fieldCount

	afterCaller = fieldFolder
)

var fieldNames = map[string]field{
	"eventID": fieldEventID, "time": fieldTime, "created": fieldCreated, "epoch": fieldEpoch, "account": fieldAccount, "region": fieldRegion,
	"guid": fieldGUID, "hex8": fieldHex8, "hex17": fieldHex17, "hex64": fieldHex64, "token16": fieldToken16, "hostID": fieldHostID,
	"number": fieldNumber, "small": fieldSmall, "user": fieldUser, "userID": fieldUserID, "userKey": fieldUserKey, "role": fieldRole, "roleID": fieldRoleID,
	"tempKey": fieldTempKey, "session": fieldSession, "ip": fieldIP, "agent": fieldAgent, "browser": fieldBrowser, "bucket": fieldBucket,
	"folder": fieldFolder, "function": fieldFunction, "table": fieldTable, "kmsKey": fieldKMSKey, "secret": fieldSecret, "queue": fieldQueue,
	"topic": fieldTopic, "repo": fieldRepo, "stack": fieldStack, "cluster": fieldCluster, "team": fieldTeam, "instance": fieldInstance,
	"image": fieldImage, "subnet": fieldSubnet, "group": fieldGroup, "endpoint": fieldEndpoint, "cipher": fieldCipher, "other": fieldOther,
	"service": fieldService, "text": fieldText, "metric": fieldMetric,
}

// follows ties a field to another's draw.
var follows = map[field]field{fieldUserID: fieldUser, fieldUserKey: fieldUser, fieldRoleID: fieldRole}

// pooled returns the lists. Addresses are documentation ranges and private ones.
func pooled() map[field][]string {
	r := newRand(0, saltPool, 0, 0)
	ids := func(n int, prefix string, alphabet string, length int) []string {
		list := make([]string, n)
		for i := range list {
			list[i] = prefix + string(r.appendFrom(nil, alphabet, length))
		}
		return list
	}
	const upper, digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789abcdef"
	users := strings.Fields("ci-deployer backup-operator terraform auditor svc-reporting svc-billing data-loader break-glass user-a user-b user-c support.tier2 ops@example.org read-only+reports")
	roles := strings.Fields(`app-orders-prod eks-node-group-a lambda-ingest github-deploy AutoScalingRole app-payments-prod ecs-catalog-task
		ConfigRecorder etl-glue org-admin sso-administrator metrics-scraper lambda-thumbs sso-read-only cfn-exec backup-default search-staging karpenter
		external-secrets ssm-managed`)
	sessions := append(ids(40, "i-0", digits, 16), ids(24, "botocore-session-17676", "0123456789", 5)...)
	sessions = append(sessions, ids(24, "aws-go-sdk-17676", "0123456789", 8)...)
	sessions = append(sessions, strings.Fields("ingest-events thumbnailer orders-worker GitHubActions AutoScaling ConfigRecorder ops@example.org auditor@example.org")...)
	ips := make([]string, 0, 96)
	for i := range 96 {
		net := [...]string{"10.0.%d.%d", "10.12.%d.%d", "172.31.%d.%d"}[i%3]
		ips = append(ips, fmt.Sprintf(net, r.below(32), 4+r.below(250)))
		if i%4 == 3 {
			ips[i] = fmt.Sprintf([...]string{"192.0.2.%d", "198.51.100.%d", "203.0.113.%d"}[r.below(3)], 1+r.below(254))
		}
		if i%24 == 23 {
			ips[i] = fmt.Sprintf("2001:db8:%x:%x::%x", r.below(65536), r.below(65536), r.below(65536))
		}
	}
	guids := make([]string, 24)
	for i := range guids {
		guids[i] = r.guid().String()
	}
	return map[field][]string{
		fieldUser: users, fieldUserID: ids(len(users), "AIDA", upper, 17), fieldUserKey: ids(len(users), "AKIA", upper, 16),
		fieldRole: roles, fieldRoleID: ids(len(roles), "AROA", upper, 17), fieldTempKey: ids(120, "ASIA", upper, 16),
		fieldSession: sessions, fieldIP: ips, fieldKMSKey: guids,
		fieldInstance: ids(48, "i-0", digits, 16), fieldImage: ids(8, "ami-0", digits, 16), fieldSubnet: ids(12, "subnet-0", digits, 16),
		fieldGroup: ids(16, "sg-0", digits, 16), fieldEndpoint: ids(6, "vpce-0", digits, 16),
		fieldAgent: {
			"aws-sdk-go-v2/1.47.7 ua/2.1 os/linux lang/go#1.26.8 md/GOARCH#arm64 m/E,Z,g",
			"Boto3/1.42.31 md/Botocore#1.42.31 ua/2.1 os/linux#6.12.58 lang/python#3.13.9 m/b,Z,D,n",
			"aws-sdk-java/2.41.8 md/io#async ua/2.1 os/Linux#6.12.58 lang/java#25.0.1 m/D,N,i",
			"aws-sdk-js/3.975.0 ua/2.1 os/linux lang/js md/nodejs#24.12.0 m/E,b",
			"aws-cli/2.33.2 md/awscrt#0.31.1 ua/2.1 os/linux#6.12.58 md/arch#x86_64 m/E,b,Z",
			"APN/1.0 HashiCorp/1.0 Terraform/1.14.3 terraform-provider-aws/6.28.0",
			"aws-sdk-rust/1.3.13 ua/2.1 os/linux lang/rust/1.92.0 m/E",
			"[S3Console/0.4, aws-internal/3 aws-sdk-java/1.12.797]",
		},
		fieldBrowser: {
			"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/144.0.0.0 Safari/537.36",
			"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.2 Safari/605.1.15",
			"Mozilla/5.0 (X11; Linux x86_64; rv:147.0) Gecko/20100101 Firefox/147.0",
		},
		fieldBucket:   strings.Fields("acme-orders-prod acme-data-lake-raw acme-data-lake-curated acme-static-assets acme-backups-eu acme-tf-state acme-elb-logs acme-config-snapshots acme-ml-features acme-exports acme-user-uploads acme-athena-results"),
		fieldFolder:   {"raw/orders/dt=2026-01-05/", "curated/sessions/hour=07/", "uploads/", "exports/daily/", "assets/img/", "backups/wal/", "features/v3/", "reports/2026 Q1/", "r\\u00e9sum\\u00e9s/", "données/août/", "日本語/売上/", "a+b=c&d/", "tmp/_temporary/0/"},
		fieldFunction: strings.Fields("ingest-events thumbnailer orders-worker payments-webhook image-resize nightly-report slack-notifier token-rotator schema-check cold-start-canary"),
		fieldTable:    strings.Fields("orders sessions inventory feature-flags terraform-locks payments-ledger user-profiles rate-limits"),
		fieldSecret:   strings.Fields("prod/orders/db-AbCdEf prod/payments/stripe-GhIjKl staging/search/api-MnOpQr shared/datadog-StUvWx prod/ledger/signing-YzAbCd rds!cluster-0a1b2c3d-EfGhIj"),
		fieldQueue:    strings.Fields("orders-events payments-retry thumbnails ingest-dlq audit-trail search-index.fifo"),
		fieldTopic:    strings.Fields("orders-placed alarms-critical deployments billing-events object-created"),
		fieldRepo:     strings.Fields("orders payments catalog search ingest web-frontend etl base-images"),
		fieldStack:    strings.Fields("network-prod orders-prod payments-prod search-staging observability data-lake iam-baseline edge-cdn"),
		fieldCluster:  strings.Fields("prod-eu-1 prod-us-1 staging batch"),
		fieldTeam:     {"orders", "payments", "platform", "data", "search", "security", "Zahlungsverkehr-Süd", "données", "r&d", "運用"},
		fieldCipher:   strings.Fields("TLS_AES_128_GCM_SHA256 TLS_AES_256_GCM_SHA384 TLS_CHACHA20_POLY1305_SHA256"),
		fieldOther:    strings.Fields("111122223333 999988887777 444455556666 888877776666"),
		fieldService:  strings.Fields("lambda ec2 autoscaling config elasticloadbalancing eks ecs-tasks backup cloudformation delivery.logs"),
		fieldText: {
			"nightly \\\"full\\\" export", "rotate key after 90\\u00a0days", "C:\\\\agents\\\\work\\\\1\\\\s", "step 2\\/3: apply\\n+ 4 to add, ~ 1 to change", "Größe prüfen – bitte nicht löschen",
			"done ✅ (retry\\t3)", "owner: r&d <ops@example.org>", "\\ud83d\\ude80 release 2026.1", "価格改定のため", "plain maintenance window", "unchanged since migration", "see runbook 14",
		},
		fieldMetric: strings.Fields("CPUUtilization RequestCount TargetResponseTime ApproximateAgeOfOldestMessage Errors Throttles DiskReadBytes"),
	}
}

type contextKey struct {
	name  string
	value field
}

// The optional members of eventContext, which bring short records up to size.
var (
	requestContext = []contextKey{
		{"aws:PrincipalTag/team", fieldTeam},
		{"aws:SourceVpce", fieldEndpoint},
		{"aws:RequestTag/cost-center", fieldNumber},
		{"aws:ResourceTag/stack", fieldStack},
		{"aws:RequestedRegion", fieldRegion},
		{"aws:RequestTag/purpose", fieldText},
		{"aws:PrincipalOrgID", fieldTeam},
		{"aws:ResourceTag/cluster", fieldCluster},
	}
	principalTags = []contextKey{
		{"team", fieldTeam},
		{"repository", fieldRepo},
		{"change", fieldGUID},
		{"note", fieldText},
		{"session-issuer", fieldRole},
		{"deployed-by", fieldSession},
		{"build", fieldHex17},
		{"stack", fieldStack},
		{"approved-by", fieldUser},
	}
)

// identity is a kind of caller: who, from where, with what.
type identity struct {
	user, from, agent string
	share             float64
}

const roleSession = `{"type":"AssumedRole","principalId":"${roleID}:${session}","arn":"arn:aws:sts::${account}:assumed-role/${role}/${session}","accountId":"${account}","accessKeyId":"${tempKey}",` +
	`"sessionContext":{"sessionIssuer":{"type":"Role","principalId":"${roleID}","arn":"arn:aws:iam::${account}:role/${role}","accountId":"${account}","userName":"${role}"},`

// identities by the letter that calls name them with.
var identities = map[byte][]identity{
	'r': {
		{roleSession + `"attributes":{"creationDate":"${created}","mfaAuthenticated":"false"}}}`, `${ip}`, `${agent}`, 5},
		{roleSession + `"attributes":{"creationDate":"${created}","mfaAuthenticated":"false"},"ec2RoleDelivery":"2.0"}}`, `${ip}`, `${agent}`, 3},
		{roleSession + `"attributes":{"creationDate":"${created}","mfaAuthenticated":"false"}},"inScopeOf":{"issuerType":"AWS::Lambda::Function","credentialsIssuedTo":"arn:aws:lambda:${region}:${account}:function:${function}"}}`, `${ip}`, `${agent}`, 2},
		{roleSession + `"attributes":{"creationDate":"${created}","mfaAuthenticated":"false"}},"invokedBy":"${service}.amazonaws.com"}`, `${service}.amazonaws.com`, `${service}.amazonaws.com`, 2},
	},
	'u': {
		{`{"type":"IAMUser","principalId":"${userID}","arn":"arn:aws:iam::${account}:user/${user}","accountId":"${account}","accessKeyId":"${userKey}","userName":"${user}"}`, `${ip}`, `${agent}`, 3},
		{`{"type":"IAMUser","principalId":"${userID}","arn":"arn:aws:iam::${account}:user/${user}","accountId":"${account}","accessKeyId":"${tempKey}","userName":"${user}","sessionContext":{"attributes":{"creationDate":"${created}","mfaAuthenticated":"true"}}}`, `${ip}`, `${browser}`, 1},
	},
	's': {{`{"type":"AWSService","invokedBy":"${service}.amazonaws.com"}`, `${service}.amazonaws.com`, `${service}.amazonaws.com`, 1}},
	'a': {{`{"type":"AWSAccount","principalId":"AROA${token16}:${session}","accountId":"${other}"}`, `${ip}`, `${agent}`, 1}},
	'w': {{`{"type":"WebIdentityUser","principalId":"arn:aws:iam::${account}:oidc-provider/token.actions.githubusercontent.com:sts.amazonaws.com:repo:example-org/${repo}:ref:refs/heads/main","userName":"repo:example-org/${repo}:ref:refs/heads/main","identityProvider":"arn:aws:iam::${account}:oidc-provider/token.actions.githubusercontent.com"}`, `${ip}`, `${agent}`, 1}},
	'm': {{`{"type":"SAMLUser","principalId":"${hex8}:ops@example.org","userName":"ops@example.org","identityProvider":"arn:aws:iam::${account}:saml-provider/corp-idp"}`, `${ip}`, `${browser}`, 1}},
	'i': {{`{"type":"IdentityCenterUser","accountId":"${account}","onBehalfOf":{"userId":"9067${hex8}-${guid}","identityStoreArn":"arn:aws:identitystore::${account}:identitystore/d-9067${hex8}"},"credentialId":"${guid}"}`, `${ip}`, `${browser}`, 1}},
	't': {{`{"type":"Root","principalId":"${account}","arn":"arn:aws:iam::${account}:root","accountId":"${account}","accessKeyId":"${tempKey}","sessionContext":{"attributes":{"creationDate":"${created}","mfaAuthenticated":"true"}}}`, `${ip}`, `${browser}`, 1}},
}

// call is one kind of event. Empty parameters are null, other empty parts absent.
type call struct {
	source, name string
	share        float64 // among the calls of its source
	by           string  // letters of identities
	read, data   bool
	params       string
	response     string
	extra        string // additionalEventData
	resources    string
	failure      string // errorCode, '|', errorMessage: of one event in ten
	kind         string // eventType; empty = AwsApiCall
	api          string // apiVersion
	more         string // further members
}

// sources from the most frequent to the least; Zipf's law gives their shares.
var sources = strings.Fields(`s3 sts kms ec2 logs dynamodb lambda ssm iam secretsmanager sqs ecr monitoring autoscaling elasticloadbalancing sns
	cloudformation eks rds ecs config signin glue guardduty organizations cloudtrail`)

const s3Extra = `{"SignatureVersion":"SigV4","CipherSuite":"${cipher}","bytesTransferredIn":0,"AuthenticationMethod":"AuthHeader","x-amz-id-2":"${hostID}","bytesTransferredOut":${number}}`

var calls = []call{
	{
		source: "s3", name: "GetObject", share: 50, by: "ra", read: true, data: true,
		params: `{"bucketName":"${bucket}","Host":"${bucket}.s3.${region}.amazonaws.com","key":"${folder}${hex8}.json.gz"}`, extra: s3Extra,
		resources: `[{"type":"AWS::S3::Object","ARN":"arn:aws:s3:::${bucket}/${folder}"},{"accountId":"${account}","type":"AWS::S3::Bucket","ARN":"arn:aws:s3:::${bucket}"}]`,
		failure:   `NoSuchKey|The specified key does not exist.`, more: `"vpcEndpointId":"${endpoint}","vpcEndpointAccountId":"${account}",`,
	},
	{
		source: "s3", name: "PutObject", share: 22, by: "rs", data: true,
		params:    `{"bucketName":"${bucket}","Host":"s3.${region}.amazonaws.com","key":"${folder}part-${number}-${hex8}.snappy.parquet","x-amz-storage-class":"INTELLIGENT_TIERING"}`,
		response:  `{"x-amz-server-side-encryption":"aws:kms","x-amz-expiration":"expiry-date=\"Mon, 12 Jan 2026\", rule-id=\"tmp\""}`,
		extra:     `{"SignatureVersion":"SigV4","CipherSuite":"${cipher}","bytesTransferredIn":${number},"bytesTransferredOut":0}`,
		resources: `[{"accountId":"${account}","type":"AWS::S3::Bucket","ARN":"arn:aws:s3:::${bucket}"}]`,
	},
	{
		source: "s3", name: "ListObjects", share: 12, by: "ru", read: true, data: true,
		params: `{"list-type":"2","bucketName":"${bucket}","prefix":"${folder}","max-keys":"1000","Host":"${bucket}.s3.${region}.amazonaws.com"}`, extra: `{"SignatureVersion":"SigV4","CipherSuite":"${cipher}"}`,
		failure: `AccessDenied|Access Denied`,
	},
	{
		source: "s3", name: "GetBucketAcl", share: 8, by: "s", read: true,
		params: `{"bucketName":"${bucket}","Host":"${bucket}.s3.${region}.amazonaws.com","acl":""}`, extra: s3Extra,
		resources: `[{"accountId":"${account}","type":"AWS::S3::Bucket","ARN":"arn:aws:s3:::${bucket}"}]`, more: `"sharedEventID":"${guid}",`,
	},
	{
		source: "s3", name: "PutBucketPolicy", share: 1, by: "u",
		params: `{"bucketName":"${bucket}","bucketPolicy":{"Version":"2012-10-17","Statement":[{"Sid":"TLSOnly","Effect":"Deny","Principal":"*","Action":"s3:*","Resource":["arn:aws:s3:::${bucket}","arn:aws:s3:::${bucket}/*"],"Condition":{"Bool":{"aws:SecureTransport":"false"}}}]},"Host":"${bucket}.s3.amazonaws.com","policy":""}`,
		extra:  `{"SignatureVersion":"SigV4","CipherSuite":"${cipher}"}`,
	},
	{
		source: "sts", name: "AssumeRole", share: 60, by: "s",
		params:    `{"roleArn":"arn:aws:iam::${account}:role/${role}","roleSessionName":"${session}","durationSeconds":3600}`,
		response:  `{"credentials":{"accessKeyId":"${tempKey}","sessionToken":"HIDDEN_DUE_TO_SECURITY_REASONS","expiration":"Jan 5, 2026, 8:44:54 AM"},"assumedRoleUser":{"assumedRoleId":"${roleID}:${session}","arn":"arn:aws:sts::${account}:assumed-role/${role}/${session}"}}`,
		resources: `[{"accountId":"${account}","type":"AWS::IAM::Role","ARN":"arn:aws:iam::${account}:role/${role}"}]`, more: `"sharedEventID":"${guid}",`,
	},
	{
		source: "sts", name: "AssumeRoleWithWebIdentity", share: 15, by: "w",
		params:   `{"roleArn":"arn:aws:iam::${account}:role/${role}","roleSessionName":"GitHubActions","durationSeconds":3600}`,
		response: `{"credentials":{"accessKeyId":"${tempKey}","expiration":"Jan 5, 2026, 8:44:54 AM"},"subjectFromWebIdentityToken":"repo:example-org/${repo}:ref:refs/heads/main","audience":"sts.amazonaws.com"}`,
		failure:  `AccessDenied|Not authorized to perform sts:AssumeRoleWithWebIdentity`,
	},
	{source: "sts", name: "AssumeRoleWithSAML", share: 3, by: "m", params: `{"sAMLAssertionID":"_${guid}","roleSessionName":"ops@example.org","durationSeconds":43200,"roleArn":"arn:aws:iam::${account}:role/${role}","principalArn":"arn:aws:iam::${account}:saml-provider/corp-idp"}`, response: `{"subjectType":"persistent","issuer":"https://idp.example.org/saml","credentials":{"accessKeyId":"${tempKey}"}}`},
	{source: "sts", name: "GetCallerIdentity", share: 22, by: "ru", read: true},
	{
		source: "kms", name: "Decrypt", share: 55, by: "r", read: true,
		params:    `{"encryptionContext":{"aws:s3:arn":"arn:aws:s3:::${bucket}/${folder}"},"encryptionAlgorithm":"SYMMETRIC_DEFAULT"}`,
		resources: `[{"accountId":"${account}","type":"AWS::KMS::Key","ARN":"arn:aws:kms:${region}:${account}:key/${kmsKey}"}]`,
	},
	{
		source: "kms", name: "GenerateDataKey", share: 35, by: "rs", read: true,
		params:    `{"keyId":"arn:aws:kms:${region}:${account}:key/${kmsKey}","encryptionContext":{"aws:s3:arn":"arn:aws:s3:::${bucket}"},"keySpec":"AES_256"}`,
		resources: `[{"accountId":"${account}","type":"AWS::KMS::Key","ARN":"arn:aws:kms:${region}:${account}:key/${kmsKey}"}]`,
		failure:   `AccessDenied|The ciphertext refers to a key that does not exist or that you may not use.`,
	},
	{source: "kms", name: "CreateGrant", share: 4, by: "r", params: `{"keyId":"arn:aws:kms:${region}:${account}:key/${kmsKey}","granteePrincipal":"arn:aws:iam::${account}:role/${role}","operations":["Decrypt","GenerateDataKeyWithoutPlaintext"]}`, response: `{"grantId":"${hex64}"}`},
	{
		source: "kms", name: "Decrypt", share: 1, by: "a", read: true, data: true, kind: "AwsVpceEvent", more: `"vpcEndpointId":"${endpoint}","vpcEndpointAccountId":"${account}",`,
		failure: `VpceAccessDenied|The request was denied due to a VPC endpoint policy`,
	},
	{
		source: "ec2", name: "DescribeInstances", share: 40, by: "r", read: true, api: "2016-11-15",
		params:  `{"instancesSet":{"items":[{"instanceId":"${instance}"}]},"filterSet":{"items":[{"name":"instance-state-name","valueSet":{"items":[{"value":"running"},{"value":"pending"}]}}]}}`,
		failure: `Client.RequestLimitExceeded|Request limit exceeded.`,
	},
	{source: "ec2", name: "DescribeNetworkInterfaces", share: 22, by: "r", read: true, api: "2016-11-15", params: `{"networkInterfaceIdSet":{},"filterSet":{"items":[{"name":"subnet-id","valueSet":{"items":[{"value":"${subnet}"}]}}]}}`},
	{
		source: "ec2", name: "RunInstances", share: 6, by: "u", api: "2016-11-15",
		params:   `{"instancesSet":{"items":[{"imageId":"${image}","minCount":1,"maxCount":1}]},"instanceType":"m8g.large","subnetId":"${subnet}","tagSpecificationSet":{"items":[{"resourceType":"instance","tags":[{"key":"team","value":"${team}"}]}]}}`,
		response: `{"requestId":"${guid}","reservationId":"r-0${hex8}","instancesSet":{"items":[{"instanceId":"i-0${hex17}","imageId":"${image}","instanceState":{"code":0,"name":"pending"}}]}}`,
		failure:  `Client.UnauthorizedOperation|You are not authorized to perform this operation. User: arn:aws:iam::${account}:user/${user} is not authorized to perform: ec2:RunInstances`,
	},
	{source: "ec2", name: "CreateTags", share: 9, by: "r", api: "2016-11-15", params: `{"resourcesSet":{"items":[{"resourceId":"${instance}"}]},"tagSet":{"items":[{"key":"note","value":"${text}"}]}}`, response: `{"requestId":"${guid}","_return":true}`},
	{source: "ec2", name: "AuthorizeSecurityGroupIngress", share: 2, by: "u", api: "2016-11-15", params: `{"groupId":"${group}","ipPermissions":{"items":[{"ipProtocol":"tcp","fromPort":443,"toPort":443,"groups":{},"ipRanges":{"items":[{"cidrIp":"192.0.2.0/24","description":"${text}"}]}}]}}`, response: `{"requestId":"${guid}","_return":true,"securityGroupRuleSet":{"items":[{"securityGroupRuleId":"sgr-0${hex17}","isEgress":false}]}}`},
	{source: "ec2", name: "BidEvictedEvent", share: 1, by: "s", kind: "AwsServiceEvent", more: `"serviceEventDetails":{"instanceIdSet":["${instance}"]},`},
	{source: "logs", name: "CreateLogStream", share: 55, by: "r", api: "20140328", params: `{"logGroupName":"/aws/lambda/${function}","logStreamName":"2026/01/05/[$LATEST]${hex17}${hex8}"}`},
	{source: "logs", name: "DescribeLogGroups", share: 20, by: "ru", read: true, api: "20140328", params: `{"logGroupNamePrefix":"/aws/eks/${cluster}","limit":50}`, failure: `ThrottlingException|Rate exceeded`},
	{source: "logs", name: "StartQuery", share: 4, by: "u", api: "20140328", params: `{"logGroupNames":["/aws/lambda/${function}"],"startTime":${epoch},"queryString":"fields @timestamp, @message\n| filter @message like /(?i)error|\\\"level\\\":\\\"ERROR\\\"/\n| sort @timestamp desc","limit":1000}`, response: `{"queryId":"${guid}"}`},
	{
		source: "dynamodb", name: "GetItem", share: 40, by: "r", read: true, data: true, api: "2012-08-10",
		params:    `{"tableName":"${table}","key":{"pk":"tenant#${number}","sk":"${hex8}"},"consistentRead":false}`,
		resources: `[{"accountId":"${account}","type":"AWS::DynamoDB::Table","ARN":"arn:aws:dynamodb:${region}:${account}:table/${table}"}]`,
	},
	{
		source: "dynamodb", name: "PutItem", share: 30, by: "r", data: true, api: "2012-08-10",
		params:    `{"tableName":"${table}","key":{"pk":"tenant#${number}","sk":"${hex8}"},"conditionExpression":"attribute_not_exists(pk)"}`,
		resources: `[{"accountId":"${account}","type":"AWS::DynamoDB::Table","ARN":"arn:aws:dynamodb:${region}:${account}:table/${table}"}]`,
		failure:   `ConditionalCheckFailedException|The conditional request failed`,
	},
	{source: "dynamodb", name: "DescribeTable", share: 15, by: "ru", read: true, api: "2012-08-10", params: `{"tableName":"${table}"}`},
	{
		source: "lambda", name: "Invoke", share: 50, by: "rs", data: true, api: "2015-03-31",
		params:    `{"functionName":"arn:aws:lambda:${region}:${account}:function:${function}","invocationType":"Event","sourceArn":"arn:aws:s3:::${bucket}"}`,
		resources: `[{"accountId":"${account}","type":"AWS::Lambda::Function","ARN":"arn:aws:lambda:${region}:${account}:function:${function}"}]`,
		extra:     `{"customerEniId":"eni-0${hex17}","functionVersion":"arn:aws:lambda:${region}:${account}:function:${function}:${small}"}`,
	},
	{source: "lambda", name: "UpdateFunctionCode20150331v2", share: 4, by: "u", params: `{"functionName":"${function}","s3Bucket":"${bucket}","s3Key":"builds/${hex17}.zip","publish":true,"dryRun":false}`, response: `{"functionName":"${function}","runtime":"provided.al2023","role":"arn:aws:iam::${account}:role/${role}","codeSize":9007199254740993,"timeout":30,"memorySize":512,"lastModified":"${time}","version":"${small}","architectures":["arm64"]}`},
	{source: "lambda", name: "GetFunction20150331v2", share: 14, by: "r", read: true, params: `{"functionName":"${function}"}`},
	{source: "ssm", name: "GetParametersByPath", share: 30, by: "r", read: true, params: `{"path":"/prod/${repo}/","recursive":true,"withDecryption":true,"maxResults":10}`},
	{source: "ssm", name: "UpdateInstanceInformation", share: 45, by: "r", params: `{"instanceId":"${instance}","agentVersion":"3.3.3270.0","agentStatus":"Active","platformType":"Linux","platformName":"Amazon Linux","platformVersion":"2023","iPAddress":"${ip}","computerName":"ip-10-0-1-17.${region}.compute.internal","agentName":"amazon-ssm-agent"}`},
	{source: "ssm", name: "SendCommand", share: 2, by: "u", params: `{"documentName":"AWS-RunShellScript","targets":[{"key":"tag:team","values":["${team}"]}],"parameters":"HIDDEN_DUE_TO_SECURITY_REASONS","comment":"${text}","timeoutSeconds":3600}`, response: `{"command":{"commandId":"${guid}","status":"Pending","targetCount":0}}`},
	{source: "iam", name: "GetRole", share: 35, by: "ru", read: true, params: `{"roleName":"${role}"}`, failure: `NoSuchEntityException|The role with name ${role} cannot be found.`},
	{source: "iam", name: "ListAttachedRolePolicies", share: 20, by: "r", read: true, params: `{"roleName":"${role}"}`},
	{source: "iam", name: "PutRolePolicy", share: 3, by: "u", params: `{"roleName":"${role}","policyName":"inline-${hex8}","policyDocument":"{\n  \"Version\": \"2012-10-17\",\n  \"Statement\": [{\"Effect\": \"Allow\", \"Action\": [\"s3:GetObject\", \"s3:ListBucket\"], \"Resource\": [\"arn:aws:s3:::${bucket}\", \"arn:aws:s3:::${bucket}\/*\"]}]\n}"}`},
	{source: "iam", name: "CreateAccessKey", share: 1, by: "ut", params: `{"userName":"${user}"}`, response: `{"accessKey":{"userName":"${user}","accessKeyId":"AKIA${token16}","status":"Active","createDate":"Jan 5, 2026, 7:44:54 AM"}}`},
	{source: "secretsmanager", name: "GetSecretValue", share: 60, by: "r", read: true, params: `{"secretId":"arn:aws:secretsmanager:${region}:${account}:secret:${secret}","versionStage":"AWSCURRENT"}`, failure: `AccessDenied|User: ${role}/${session} is not authorized to perform: secretsmanager:GetSecretValue`},
	{source: "secretsmanager", name: "RotateSecret", share: 1, by: "s", params: `{"secretId":"${secret}","clientRequestToken":"${guid}","rotateImmediately":true}`, response: `{"aRN":"arn:aws:secretsmanager:${region}:${account}:secret:${secret}","versionId":"${guid}"}`},
	{source: "sqs", name: "ReceiveMessage", share: 30, by: "r", data: true, read: true, params: `{"queueUrl":"https://sqs.${region}.amazonaws.com/${account}/${queue}","maxNumberOfMessages":10,"waitTimeSeconds":20}`, resources: `[{"accountId":"${account}","type":"AWS::SQS::Queue","ARN":"arn:aws:sqs:${region}:${account}:${queue}"}]`},
	{source: "sqs", name: "GetQueueAttributes", share: 25, by: "r", read: true, params: `{"queueUrl":"https://sqs.${region}.amazonaws.com/${account}/${queue}","attributeNames":["ApproximateNumberOfMessages","ApproximateNumberOfMessagesNotVisible"]}`},
	{source: "ecr", name: "BatchGetImage", share: 30, by: "r", read: true, params: `{"registryId":"${account}","repositoryName":"${repo}","imageIds":[{"imageTag":"main-${hex8}"}]}`, resources: `[{"accountId":"${account}","ARN":"arn:aws:ecr:${region}:${account}:repository/${repo}"}]`},
	{source: "ecr", name: "GetAuthorizationToken", share: 20, by: "r", read: true},
	{source: "ecr", name: "PutImage", share: 3, by: "u", params: `{"registryId":"${account}","repositoryName":"${repo}","imageTag":"main-${hex8}","imageManifestMediaType":"application/vnd.oci.image.index.v1+json"}`, response: `{"image":{"registryId":"${account}","repositoryName":"${repo}","imageId":{"imageDigest":"sha256:${hex64}","imageTag":"main"}}}`},
	{source: "monitoring", name: "GetMetricData", share: 50, by: "r", read: true, data: true, params: `{"startTime":"${created}","endTime":"${time}","metricDataQueries":[{"id":"m1","metricStat":{"metric":{"namespace":"AWS/SQS","metricName":"${metric}"},"period":60,"stat":"Sum"}}]}`},
	{source: "monitoring", name: "PutMetricAlarm", share: 3, by: "u", api: "2010-08-01", params: `{"alarmName":"${queue}-${metric}","alarmDescription":"${text}","comparisonOperator":"GreaterThanThreshold","threshold":0.95,"evaluationPeriods":3,"metricName":"${metric}","treatMissingData":"notBreaching","actionsEnabled":true,"alarmActions":["arn:aws:sns:${region}:${account}:${topic}"]}`},
	{source: "autoscaling", name: "DescribeAutoScalingGroups", share: 30, by: "r", read: true, params: `{"autoScalingGroupNames":["eks-${cluster}-ng-${hex8}"],"maxRecords":100}`},
	{source: "autoscaling", name: "TerminateInstanceInAutoScalingGroup", share: 2, by: "u", params: `{"instanceId":"${instance}","shouldDecrementDesiredCapacity":true}`, response: `{"activity":{"activityId":"${guid}","statusCode":"InProgress","progress":0,"cause":"At ${time} instance ${instance} was taken out of service in response to a user request."}}`},
	{source: "elasticloadbalancing", name: "DescribeTargetHealth", share: 30, by: "r", read: true, api: "2015-12-01", params: `{"targetGroupArn":"arn:aws:elasticloadbalancing:${region}:${account}:targetgroup/${repo}/${hex8}${hex8}"}`},
	{source: "elasticloadbalancing", name: "RegisterTargets", share: 6, by: "r", api: "2015-12-01", params: `{"targetGroupArn":"arn:aws:elasticloadbalancing:${region}:${account}:targetgroup/${repo}/${hex8}","targets":[{"id":"${ip}","port":8080}]}`},
	{source: "sns", name: "Publish", share: 30, by: "r", data: true, params: `{"topicArn":"arn:aws:sns:${region}:${account}:${topic}","message":"HIDDEN_DUE_TO_SECURITY_REASONS","subject":"HIDDEN_DUE_TO_SECURITY_REASONS","messageStructure":"json"}`, response: `{"messageId":"${guid}"}`},
	{source: "cloudformation", name: "DescribeStacks", share: 20, by: "ru", read: true, params: `{"stackName":"${stack}"}`, failure: `ValidationException|Stack with id ${stack} does not exist`},
	{source: "cloudformation", name: "CreateChangeSet", share: 3, by: "u", params: `{"stackName":"${stack}","changeSetName":"cs-${hex8}","description":"${text}","capabilities":["CAPABILITY_NAMED_IAM"],"parameters":[{"parameterKey":"ImageTag","parameterValue":"main-${hex8}"}]}`, response: `{"id":"arn:aws:cloudformation:${region}:${account}:changeSet/cs/${guid}","stackId":"arn:aws:cloudformation:${region}:${account}:stack/${stack}/${guid}"}`},
	{source: "eks", name: "DescribeCluster", share: 20, by: "r", read: true, params: `{"name":"${cluster}"}`},
	{source: "eks", name: "AccessKubernetesApi", share: 5, by: "i", read: true, kind: "AwsConsoleAction", params: `{"clusterName":"${cluster}","path":"\/api\/v1\/namespaces\/default\/pods?limit=500"}`},
	{source: "rds", name: "DescribeDBClusters", share: 15, by: "ru", read: true, params: `{"dBClusterIdentifier":"${table}-${cluster}"}`},
	{source: "rds", name: "CreateDBClusterSnapshot", share: 2, by: "s", params: `{"dBClusterIdentifier":"${table}-${cluster}","dBClusterSnapshotIdentifier":"awsbackup:job-${guid}","tags":[{"key":"team","value":"${team}"}]}`, response: `{"status":"creating","engine":"aurora-postgresql","engineVersion":"17.7","storageEncrypted":true,"kmsKeyId":"arn:aws:kms:${region}:${account}:key/${kmsKey}","percentProgress":0}`},
	{source: "ecs", name: "RegisterContainerInstance", share: 4, by: "r", params: `{"cluster":"${cluster}","totalResources":[{"name":"CPU","type":"INTEGER","integerValue":2048},{"name":"MEMORY","type":"INTEGER","integerValue":7680}]}`},
	{source: "ecs", name: "DescribeTasks", share: 20, by: "r", read: true, params: `{"cluster":"${cluster}","tasks":["arn:aws:ecs:${region}:${account}:task/${cluster}/${hex17}"]}`},
	{source: "config", name: "PutEvaluations", share: 12, by: "r", params: `{"evaluations":[{"complianceResourceType":"AWS::S3::Bucket","complianceResourceId":"${bucket}","complianceType":"COMPLIANT","orderingTimestamp":"${created}"}],"testMode":false}`, response: `{"failedEvaluations":[]}`},
	{
		source: "signin", name: "ConsoleLogin", share: 5, by: "ut", kind: "AwsConsoleSignIn", response: `{"ConsoleLogin":"Success"}`,
		extra: `{"LoginTo":"https://console.aws.amazon.com/console/home?hashArgs=%23&isauthcode=true&state=hashArgsFromTB_${region}_${hex17}","MobileVersion":"No","MFAIdentifier":"arn:aws:iam::${account}:mfa/device","MFAUsed":"Yes"}`,
	},
	{source: "glue", name: "GetPartitions", share: 10, by: "r", read: true, params: `{"databaseName":"lake","tableName":"${table}","expression":"(dt >= '2026-01-04') AND (region IN ('${region}'))","maxResults":1000}`},
	{source: "guardduty", name: "ListFindings", share: 6, by: "r", read: true, params: `{"detectorId":"${hex17}${hex8}","findingCriteria":{"criterion":{"severity":{"gte":4},"service.archived":{"eq":["false"]}}},"maxResults":50}`},
	{source: "organizations", name: "ListAccounts", share: 4, by: "r", read: true},
	{source: "cloudtrail", name: "LookupEvents", share: 4, by: "ru", read: true, params: `{"lookupAttributes":[{"attributeKey":"EventName","attributeValue":"ConsoleLogin"}],"maxResults":50}`, failure: `ThrottlingException|Rate exceeded`},
}

// assemble makes a template of each call with each of its callers, with and
// without its failure, and returns their weights.
func (k *kit) assemble() (weights []float64) {
	shares, rank := map[string]float64{}, map[string]float64{}
	for _, c := range calls {
		shares[c.source] += c.share
	}
	for i, s := range sources {
		rank[s] = 1 / math.Pow(float64(i+1), 1.1)
	}
	add := func(c call, by identity, failure string, weight float64) {
		k.templates = append(k.templates, k.fit(c, by, failure))
		weights = append(weights, weight)
	}
	for _, c := range calls {
		var callers []identity
		total := 0.0
		for i := range len(c.by) {
			for _, id := range identities[c.by[i]] {
				callers = append(callers, id)
				total += id.share
			}
		}
		for _, by := range callers {
			weight := rank[c.source] * c.share / shares[c.source] * by.share / total
			if c.failure != "" {
				add(c, by, c.failure, weight*0.1)
				weight *= 0.9
			}
			add(c, by, "", weight)
		}
	}
	return weights
}

// fit leaves out optional members until a record cannot exceed maxRecord.
func (k *kit) fit(c call, by identity, failure string) template {
	tls := !strings.Contains(by.from, "amazonaws.com") // AWS services give no TLS details
	for _, leave := range []func(){
		func() {}, func() { c.more = "" }, func() { tls = false }, func() { c.resources = "" }, func() { c.extra = "" },
	} {
		leave()
		t := parse(c.source, c.text(by, failure, tls))
		if k.longest(t) <= maxRecord {
			return t
		}
	}
	panic("feed: " + c.source + " " + c.name + " is too long for a record")
}

// longest is the length of the longest record that a template makes.
func (k *kit) longest(t template) int {
	n := len("}")
	for _, p := range t.parts {
		n += len(p.text)
		switch p.field {
		case 0:
		case fieldAccount, fieldEpoch:
			n += 13
		case fieldTime, fieldCreated:
			n += 20
		case fieldRegion, fieldToken16:
			n += 16
		case fieldEventID, fieldGUID:
			n += 36
		case fieldHex8:
			n += 8
		case fieldHex17:
			n += 17
		case fieldHex64:
			n += 64
		case fieldHostID:
			n += 76
		case fieldNumber, fieldSmall:
			n += 5
		default:
			longest := 0
			for _, v := range k.pools[p.field].values {
				longest = max(longest, len(v))
			}
			n += longest
		}
	}
	return n
}

// text is the record of a call by a caller, in CloudTrail's order of members,
// without the last brace.
func (c call) text(by identity, failure string, tls bool) string {
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	var b strings.Builder
	put := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	put(`{"eventVersion":"1.11","userIdentity":%s,"eventTime":"${time}","eventSource":"%s.amazonaws.com","eventName":"%s","awsRegion":"${region}","sourceIPAddress":"%s","userAgent":"%s",`,
		by.user, c.source, c.name, by.from, by.agent)
	response := c.response
	if failure != "" {
		code, message, _ := strings.Cut(failure, "|")
		put(`"errorCode":"%s","errorMessage":"%s",`, code, message)
		response = ""
	}
	put(`"requestParameters":%s,"responseElements":%s,`, or(c.params, "null"), or(response, "null"))
	if c.extra != "" {
		put(`"additionalEventData":%s,`, c.extra)
	}
	put(`"requestID":"${guid}","eventID":"${eventID}","readOnly":%t,`, c.read)
	if c.resources != "" {
		put(`"resources":%s,`, c.resources)
	}
	put(`"eventType":"%s",`, or(c.kind, "AwsApiCall"))
	if c.api != "" {
		put(`"apiVersion":"%s",`, c.api)
	}
	category := "Management"
	switch {
	case c.kind == "AwsVpceEvent":
		category = "NetworkActivity"
	case c.data:
		category = "Data"
	}
	put(`"managementEvent":%t,"recipientAccountId":"${account}",%s"eventCategory":"%s"`, !c.data, c.more, category)
	if tls {
		put(`,"tlsDetails":{"tlsVersion":"TLSv1.3","cipherSuite":"${cipher}","clientProvidedHostHeader":"%s.${region}.amazonaws.com","keyExchange":"X25519MLKEM768"}`, c.source)
	}
	return b.String()
}

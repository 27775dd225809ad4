# Vestibule in front of a service that is there: a task definition with both containers, and a target group at
# Vestibule's port. The service itself stays yours: its desired_count, its deployment settings, its network.

locals {
  port = 8080

  # What only Vestibule may read.
  own_secrets = merge(
    nonsensitive(var.backend_credential == null) ? {} : { BACKEND_SECRET = var.backend_credential.secret_arn },
    var.secrets,
  )

  provider = merge(
    { preset = var.preset, issuer = var.issuer },
    var.audience == null ? {} : { audience = var.audience },
  )

  configuration = merge(
    {
      listen = ":${local.port}"
      upstream = merge(
        { url = "http://127.0.0.1:${var.backend_port}" },
        nonsensitive(var.backend_credential == null) ? {} : {
          credential = { header = nonsensitive(var.backend_credential.header), value = "$${BACKEND_SECRET}" }
        },
      )
      trusted_proxies = var.trusted_proxies
      origins         = var.origins
      providers       = [local.provider]
      routes          = [for path in var.public_paths : { path = path, auth = "none" }]
    },
    var.more_configuration,
  )

  # The backend as it is, but reachable through Vestibule only, and without the provider's secrets.
  backend = merge(
    { for key, value in var.backend_container : key => value if !contains(["portMappings", "secrets", "environment"], key) },
    {
      essential    = true
      portMappings = []
      stopTimeout  = 40
      environment = [
        for variable in try(var.backend_container.environment, []) : variable if !contains(var.provider_secret_names, variable.name)
      ]
      secrets = [
        for secret in try(var.backend_container.secrets, []) : secret if !contains(var.provider_secret_names, secret.name)
      ]
    },
  )

  vestibule = {
    name                   = "vestibule"
    image                  = var.image
    essential              = true
    cpu                    = var.cpu
    memory                 = var.memory
    user                   = "65532:65532"
    readonlyRootFilesystem = true
    linuxParameters        = { capabilities = { drop = ["ALL"] } }
    portMappings           = [{ containerPort = local.port, protocol = "tcp" }]
    # ECS stops in reverse order: Vestibule drains while the backend lives.
    dependsOn   = [{ containerName = var.backend_container.name, condition = "START" }]
    stopTimeout = 35
    healthCheck = { command = ["CMD", "/vestibule", "healthcheck"], interval = 10, timeout = 5, retries = 3, startPeriod = 10 }
    ulimits     = [{ name = "nofile", softLimit = 20128, hardLimit = 20128 }]
    # JSON is YAML.
    environment = [{ name = "VESTIBULE_CONFIG_YAML", value = jsonencode(local.configuration) }]
    secrets     = [for name, arn in local.own_secrets : { name = name, valueFrom = arn }]
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = var.log_group
        awslogs-region        = var.region
        awslogs-stream-prefix = "vestibule"
      }
    }
  }
}

resource "aws_ecs_task_definition" "this" {
  family                   = var.name
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.task.cpu
  memory                   = var.task.memory
  execution_role_arn       = var.task.execution_role_arn
  task_role_arn            = var.task.task_role_arn
  container_definitions    = jsonencode([local.backend, local.vestibule])

  runtime_platform {
    cpu_architecture        = var.task.architecture
    operating_system_family = "LINUX"
  }
}

resource "aws_lb_target_group" "this" {
  name_prefix          = "vest-"
  port                 = local.port
  protocol             = "HTTP"
  target_type          = "ip"
  vpc_id               = var.vpc_id
  deregistration_delay = 30

  health_check {
    path                = var.health_check_path
    matcher             = "200"
    interval            = 10
    timeout             = 5
    healthy_threshold   = 2
    unhealthy_threshold = 3
  }

  dynamic "stickiness" {
    for_each = var.stickiness == null ? [] : [var.stickiness]

    content {
      type            = stickiness.value.type
      cookie_duration = stickiness.value.cookie_duration
    }
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_lb_listener_rule" "this" {
  count = var.listener_arn == null ? 0 : 1

  listener_arn = var.listener_arn
  priority     = var.listener_priority

  action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.this.arn
  }

  condition {
    host_header {
      values = var.listener_hosts
    }
  }
}

data "aws_lb" "this" {
  arn = var.load_balancer_arn
}

check "idle_timeout" {
  assert {
    condition     = data.aws_lb.this.idle_timeout > 30 && data.aws_lb.this.idle_timeout < 75
    error_message = "The load balancer's idle_timeout should be 60: above Vestibule's ping_interval (30 s), or sockets are cut; below its keep_alive_timeout (75 s), or requests meet a connection that has just been closed (502)."
  }
}

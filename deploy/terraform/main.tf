# Vestibule in front of an existing service: a task definition with both containers, a target group at Vestibule's port,
# the listener rule that divides the traffic, and the security group rules for Vestibule's port. The service itself stays
# yours: its desired_count, its deployment settings, its network.

locals {
  port = 8080

  # The name of the environment variable from which the backend reads its own secret.
  backend_variable = nonsensitive(var.backend_credential == null) ? null : nonsensitive(var.backend_credential.variable)

  # Fargate gives a secret as a variable only, and Vestibule reads the engine's password from a file. A container that runs
  # before it writes that file, into a volume that no other container mounts.
  engine_folder = "/run/engine"
  engine_password = var.shared == null ? [] : [{
    name                   = "engine-password"
    image                  = var.shared.writer_image
    essential              = false
    command                = ["sh", "-c", "umask 077 && printf %s \"$ENGINE_PASSWORD\" > ${local.engine_folder}/password && chown 65532:65532 ${local.engine_folder}/password"]
    readonlyRootFilesystem = true
    mountPoints            = [{ sourceVolume = "engine", containerPath = local.engine_folder }]
    secrets                = [{ name = "ENGINE_PASSWORD", valueFrom = var.shared.password_secret_arn }]
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = var.log_group
        awslogs-region        = var.region
        awslogs-stream-prefix = "engine-password"
      }
    }
  }]

  # The secrets of Vestibule.
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
    var.shared == null ? {} : {
      shared = { url = var.shared.url, username = var.shared.username, password_file = "${local.engine_folder}/password" }
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
      # Its own secret, which it requires and Vestibule sends, goes to both containers.
      secrets = concat(
        [
          for secret in try(var.backend_container.secrets, []) : secret
          if !contains(var.provider_secret_names, secret.name) && secret.name != coalesce(local.backend_variable, "-")
        ],
        local.backend_variable == null ? [] : [{ name = local.backend_variable, valueFrom = var.backend_credential.secret_arn }],
      )
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
    dependsOn = concat(
      [{ containerName = var.backend_container.name, condition = "START" }],
      [for container in local.engine_password : { containerName = container.name, condition = "SUCCESS" }],
    )
    mountPoints = [for container in local.engine_password : { sourceVolume = "engine", containerPath = local.engine_folder, readOnly = true }]
    stopTimeout = 35
    healthCheck = { command = ["CMD", "/vestibule", "healthcheck"], interval = 10, timeout = 5, retries = 3, startPeriod = 10 }
    ulimits     = [{ name = "nofile", softLimit = 20384, hardLimit = 20384 }]
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
  container_definitions    = jsonencode(concat([local.backend], local.engine_password, [local.vestibule], var.more_containers))

  runtime_platform {
    cpu_architecture        = var.task.architecture
    operating_system_family = "LINUX"
  }

  dynamic "volume" {
    for_each = var.shared == null ? [] : ["engine"]

    content {
      name = volume.value
    }
  }

  dynamic "volume" {
    for_each = var.volumes

    content {
      name = volume.value.name

      dynamic "efs_volume_configuration" {
        for_each = volume.value.efs_file_system_id == null ? [] : [volume.value]

        content {
          file_system_id     = efs_volume_configuration.value.efs_file_system_id
          root_directory     = efs_volume_configuration.value.root_directory
          transit_encryption = "ENABLED"

          dynamic "authorization_config" {
            for_each = efs_volume_configuration.value.efs_access_point_id == null ? [] : [efs_volume_configuration.value]

            content {
              access_point_id = authorization_config.value.efs_access_point_id
              iam             = "ENABLED"
            }
          }
        }
      }
    }
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
    type = "forward"

    forward {
      target_group {
        arn    = aws_lb_target_group.this.arn
        weight = var.former_target_group_arn == null ? 100 : var.weight
      }

      dynamic "target_group" {
        for_each = var.former_target_group_arn == null ? [] : [var.former_target_group_arn]

        content {
          arn    = target_group.value
          weight = 100 - var.weight
        }
      }

      # While both have traffic, a browser stays at one of them.
      dynamic "stickiness" {
        for_each = var.former_target_group_arn != null && var.weight > 0 && var.weight < 100 ? [3600] : []

        content {
          enabled  = true
          duration = stickiness.value
        }
      }
    }
  }

  condition {
    host_header {
      values = var.listener_hosts
    }
  }
}

# The balancer may reach Vestibule's port of the tasks.
resource "aws_vpc_security_group_ingress_rule" "balancer" {
  for_each = var.task_security_group_id == null ? toset([]) : toset(data.aws_lb.this.security_groups)

  security_group_id            = var.task_security_group_id
  referenced_security_group_id = each.value
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
  description                  = "From the load balancer to Vestibule"
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

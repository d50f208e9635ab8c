"""What Prometheus and Grafana are given: rules, and dashboards with what makes them."""

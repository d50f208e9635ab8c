#!/bin/sh
# A fence agent for tests: the host's own loop devices, named in "devices", are made read-only. The host lives on.
set -e
devices=
while IFS='=' read -r key value; do
    case $key in
    devices) devices=$value ;;
    esac
done
[ -n "$devices" ]
for device in $devices; do
    blockdev --setro "$device"
done

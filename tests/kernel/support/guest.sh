# Helpers of the scripts that run in the guest. What a test reads begins with @@.
load() { # a module and what it needs
  for _name in "$@"; do
    [ -f /lib/m/$_name.order ] || continue # built in
    for _one in $(cat /lib/m/$_name.order); do
      [ -d /sys/module/$_one ] || insmod /lib/m/$_one.ko || echo "@@DIE insmod $_one"
    done
  done
}
dd() { /bin/dd "$@" 2>/tmp/dd.err; } # ash would prefer its own, which ignores oflag=direct
die() { echo "@@DIE $*"; exit 1; }
size() { blockdev --getsz /dev/mapper/$1; }
status() { echo "@@STATUS $1 $(dmsetup status $1 | cut -d' ' -f4-)"; } # of a snapshot, by its device's name
sum() { echo "@@MD5 $1 $(md5sum </dev/mapper/$1 | cut -c1-32)"; }
part() { # name, first sector, sectors: a part of the bundle disk
  dmsetup create $1 --table "0 $3 linear /dev/vda $2" || die part $1
}
snapshot() { # name, origin, COW, chunk sectors, options: a snapshot as the kernel has it
  _s=$1; _o=$2; _c=$3; _k=$4; shift 4
  dmsetup create $_s "$@" --table "0 $(size $_o) snapshot /dev/mapper/$_o /dev/mapper/$_c P $_k" || echo "@@REFUSED $_s"
}
origin() { # name, origin: what one writes to, so that snapshots get their copies
  dmsetup create $1 --table "0 $(size $2) snapshot-origin /dev/mapper/$2" || die origin $2
}
write() { # to, from, chunk sectors, chunk, chunks: at the same place, as one writer does
  dd if=/dev/mapper/$2 of=/dev/mapper/$1 bs=$(($3 * 512)) skip=$4 seek=$4 count=$5 oflag=direct conv=notrunc ||
    echo "@@WRITE FAILED $1 $4"
}

"""``csnap top``: a live view of one volume from one host. The only user of the library rich (render.py, screen.py).

observation.py   the daemon's answer, checked
model.py         what is shown: rates, latencies, time to full, from a history of observations; pure
words.py         numbers as people read them in narrow columns
render.py        model -> renderable, for any size from 80x24 on; pure
sampler.py       asks the daemon every interval, in a thread; goes on while none answers
screen.py        the terminal: keys, resizing, and leaving it as it was
command.py       the command's options
"""
